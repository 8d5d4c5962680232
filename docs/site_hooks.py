"""Fits the pages of docs/ into the site, which has no files beside them.

Links to files outside of docs/, such as the source code, work where the project
is browsed as a folder. On the site their text is kept. The page of settings is
filled from the configurations.
"""

import re

from lco_jax.trainers.configs import control, defaults, language, llm, verifier

# The scripts' configurations.
_CONFIGS = {
  "control": control,
  "language": language,
  "llm": llm,
  "verifier": verifier,
}
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!tutorials|api)[^)]*\)")
_EXAMPLES = re.compile(r"\[([^\]]+)\]\((?:\.\./)*examples/[^)]*\)")


_PAGES = re.compile(r'href="(?!\w+:)([^"#]+)\.(?:md|ipynb)(#[^"]*)?"')


def on_post_page(output: str, page, **_) -> str:
  """Links notebooks to the pages that Markdown files become."""
  if not page.file.src_uri.endswith(".ipynb"):
    return output
  return _PAGES.sub(r'href="\1.html\2"', output)


def on_page_markdown(markdown: str, page, **_) -> str:
  """Replaces links to files outside by their text, and adds tables."""
  if page.file.src_uri == "api/settings.md":
    return f"{markdown}\n{make_settings_tables()}\n"
  if page.file.src_uri.startswith(("tutorials/", "api/")):
    return markdown  # Their ".." is inside.
  return _EXAMPLES.sub(r"\1", _OUTSIDE.sub(r"\1", markdown))


def make_settings_tables() -> str:
  """Makes a table of settings for each script: meanings and defaults."""
  parts = []
  for name, module in _CONFIGS.items():
    config = module.get_config()
    rows = [("setting", "default", "meaning"), ("---",) * 3]
    rows += [
      (f"`{key}`", f"`{config[key]!r}`", defaults.meaning(key))
      for key in config
      if key != "tuned"
    ]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    parts.append(f"## {name}.py\n\n{table}\n")
  return "\n".join(parts)
