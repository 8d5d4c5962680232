"""Chat templates with the constructs that models' templates use.

Each is named after a family whose templates have these constructs; none is a
copy of a model's own template.
"""

# Line breaks are part of a template.
# ruff: noqa: E501

SPECIAL = {
  "bos_token": "<|begin|>",
  "eos_token": "<|end|>",
  "pad_token": "<|pad|>",
  "unk_token": "<|unk|>",
}
# The date that templates are told.
DATE = "2031-04-09"

CONVERSATIONS = {
  "question": [{"role": "user", "content": "  What is 2 < 3?\n"}],
  "turns": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Say "é" & <b>.'},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\né"},
    {"role": "user", "content": "Again."},
  ],
}

TEMPLATES = {
  # Plain loop, conditions on the loop.
  "chatml": """{% for message in messages %}
{% if loop.first and message.role != 'system' %}
{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}""",
  # Text of tokens by name, slices of messages, alternation that is checked.
  "llama2": """{%- if messages[0]['role'] == 'system' -%}
{%- set rest = messages[1:] -%}{%- set system = messages[0]['content'] -%}
{%- else -%}{%- set rest = messages -%}{%- set system = false -%}{%- endif -%}
{%- for m in rest -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('roles must alternate') }}
{%- endif -%}
{%- if loop.index0 == 0 and system != false -%}
{%- set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] -%}
{%- else -%}{%- set text = m['content'] -%}{%- endif -%}
{%- if m['role'] == 'user' -%}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
{%- else -%}{{ ' ' + text.strip() + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}""",
  # The date, tools that are None, defined or not, filters.
  "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{{- "<|head|>system<|/head|>\\n\\nToday: " + date_string + "\\n" }}
{%- if tools is not none %}{{- "Tools:" }}{{ tools | tojson(indent=4) }}{%- endif %}
{%- for message in messages %}
    {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\\n\\n' }}{%- endif %}""",
  # Namespaces, split, reversed loops, content that is a text.
  "qwen3": """{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {{- '[' ~ thought ~ '/' ~ loop.index0 ~ '<' ~ ns.last ~ ']' }}
        {%- endif %}
        {{- content }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not enable_thinking is defined %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
  # Roles that are renamed, a first message that joins the next.
  "gemma": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}{%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is iterable and message['content'] is not string -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}{{ message['content'] | trim }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}""",
  # Blocks that mark the assistant's words.
  "smollm3": """{% for message in messages %}
{%- if message.role == 'assistant' -%}
{% generation %}{% set shown = message.content.split('</think>') | last %}{{ '<|a|>' + shown | trim + '<|e|>' }}{% endgeneration %}
{%- else -%}
{{ '<|' ~ message.role[0] ~ '|>' ~ message.content }}
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|a|>{% endif %}""",
  # Macros with arguments.
  "command": """{%- macro turn(role, text, close=true) -%}
<|{{ role | upper }}|>{{ text }}{% if close %}<|/|>{% endif %}
{%- endmacro -%}
{{ bos_token }}{% for m in messages %}{{ turn(m.role, m.content | trim) }}{% endfor %}
{%- if add_generation_prompt %}{{ turn('assistant', '', close=false) }}{% endif %}
{%- if documents %}{{ documents | length }}{% endif %}""",
  # break and continue.
  "deepseek": """{%- set ns = namespace(system='') -%}
{%- for m in messages -%}{%- if m.role != 'system' -%}{%- break -%}{%- endif -%}{%- set ns.system = ns.system + m.content -%}{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}
{{ '<|' + m['role'].title() + '|>' + m['content'] }}{{ eos_token if m.role == 'assistant' }}
{%- endfor -%}
{{ '<|Assistant|>' if add_generation_prompt else '' }}""",
  # JSON of messages, not escaped; sorted keys, separators.
  "tools": """{{ messages | tojson }}
{{ messages[0] | tojson(indent=2) }}
{{ messages[-1] | tojson(sort_keys=true, separators=(',', ':')) }}
{{ messages[-1].content | tojson(ensure_ascii=true) }}""",
  # Tests and filters of lists.
  "granite": """{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}
{{ users | length }}:{{ users | map(attribute='content') | join('|') }}
{%- for role, own in messages | groupby('role') %};{{ role }}={{ own | length }}{% endfor %}
{{ 'none' if documents is none }}{{ tools is none }}{{ pad_token | default('no') }}{{ cls_token | default('no') }}{{ unk_token }}
{%- for key, value in messages[0].items() %}
  {{ key }}: {{ value | replace('?', '!') }}
{%- endfor %}""",
  # Comments, raw blocks, white space kept and not.
  "phi": """{# a comment #}
{% raw %}{{ not read }}{% endraw %}

{% for m in messages %}
  {% if m.role == 'user' %}
<|user|>
{{ m.content }}<|end|>
  {% elif m.role == 'assistant' %}
<|assistant|>
{{ m.content }}<|end|>
  {% else %}
    {{- m.content -}}
  {% endif %}
{% endfor %}
<|assistant|>
""",
  # Loop variables, cycles, nested loops, arithmetic.
  "mistral": """{%- for m in messages recursive %}{{ loop.index }}/{{ loop.length }}{{ loop.cycle('a', 'b') }}{{ ',' if not loop.last }}{% endfor %}
{{ messages | length // 2 }} {{ 7 % 4 }} {{ 2 ** 3 }} {{ (1, 2)[1] }} {{ [1, 2] + [3] }} {{ {'a': 1}['a'] }}
{{ messages[0]['content'][:6] | trim | lower | capitalize }}{{ eos_token }}""",
  # Whether a turn is marked, ifs in expressions, a call block.
  "olmo": """{%- macro wrap(tag) -%}<{{ tag }}>{{ caller() }}</{{ tag }}>{%- endmacro -%}
{%- for m in messages -%}
{%- call wrap(m['role']) %}{{ m['content'].strip() }}{% endcall %}{{ '\\n' if not loop.last else '' }}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != 'assistant' -%}{{ '<assistant>' }}{%- endif -%}""",
  # Several templates by name, of which one is the default.
  "hermes": [
    {"name": "tool_use", "template": "tools: {{ tools }}"},
    {
      "name": "default",
      "template": "{% for m in messages %}{{ m.role ~ ':' ~ m.content }}"
      "{% endfor %}{{ eos_token }}",
    },
  ],
}
