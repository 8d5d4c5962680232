r"""Numbers in texts: what is read, and which answers count as right."""

import fractions

import pytest

from lco_jax.tasks import built_in_rewards, numbers, reasoning_gym_texts

# A text, and the number that is read from it.
_READ = r"""
1,234.|1234
The answer is 1,234,567.|1234567
−5|-5
- 5|-5
.5|1/2
-.5|-1/2
The answer is -5.|-5
The answer is - 5|-5
5 - 3|3
0-4|4
x - 3|3
10 - 3 = 7|7
7 -3|-3
(-5)|-5
x=-5|-5
Answer:-5|-5
**-5**|-5
-$5|-5
$-5|-5
$5$|5
$-5$|-5
$1,000.00|1000
5€|5
US$ 20|20
50%|50
50 %|50
50\%|50
3/4|3/4
-3/4|-3/4
\frac{3}{4}|3/4
-\frac{3}{4}|-3/4
\frac{-3}{4}|-3/4
\frac{3}{-4}|-3/4
\dfrac34|3/4
2\frac{1}{2}|5/2
1 3/4|7/4
½|1/2
1½|3/2
1e3|1000
1.5E-3|3/2000
2 × 10^3|2000
2 \times 10^{3}|2000
2·10³|2000
10^3|1000
10⁻²|1/100
3 x 10^5|300000
x2|None
3D|None
2nd|None
3x|None
5kg|5
5 kg|5
10km/h|10
20°C|20
2024-05-06|None
5/6/2024|None
10:30|None
1.2.3|None
192.168.0.1|None
GPT-4|None
covid-19|None
5-year-old|None
5!|5
5?|5
(5)|5
5)|5
[5]|5
5,|5
3.14...|157/50
√5|None
\sqrt{5}|None
2\sqrt{3}|None
2\pi|None
2π|None
x^2|None
2^10|None
5²|None
\boxed{5}|5
\boxed{5} in 3 steps|5
\boxed{x} so 5|None
\boxed{\frac{1}{2}}|1/2
\boxed{5\text{ cm}}|5
\boxed{1{,}234}|1234
\boxed{-5}|-5
\boxed{{5}}|5
#### 42|42
1\,234|1234
1 234|1234
1_000|1000
1'234|1234
1,2,3|3
(1,2)|2
0x1F|None
https://a.b/5|None
1/0|None
12 / 4 = 3|3
v2|None
v2.5|None
x_1|None
\frac{\sqrt{3}}{2}|None
\left(-5\right)|-5
\(5\)|5
\[ 5 \]|5
５|5
+5|5
--5|-5
5 + -3|-3
5×3=15|15
3*4|4
$\frac{2}{3}$|2/3
\text{5}|5
5.0|5
5.|5
0.50|1/2
007|7
-1,234.5|-2469/2
12 apples|12
one|None
NaN|None
1e999999|None
–7|-7
=−12|-12
2 1/2 cups|5/2
It costs $3.50.|7/2
100 percent|100
5-3|3
5%-3%|3
"5"|5
'5'|5
5; 6|6
1.5m|3/2
5min|5
a-5|None
\$5|5
\$1{,}000|1000
5\,\text{kg}|5
5~\mathrm{cm}|5
\approx 5|5
3 \cdot 5 = 15|15
-\dfrac{1}{2}|-1/2
\tfrac12|1/2
7/8.|7/8
-(3)|-3
5 -(3)|-3
5-(3)|3
e5|None
No. 5|5
#5|5
5th|None
A4|None
1,23|23
12,345.678|6172839/500
1234,567|567
5m^2|5
12 cm²|12
℃ 20|20
the 2nd of 3 parts|3
between 3-5 or 4\%|4
score: 7 / 10 / 20|None
USD15|15
1/2x|None
the ratio 5/8y|None
٣|3
\fbox{9}|9
\begin{aligned} 9/5 = 2.5 \end{aligned}|5/2
5 \implies x|5
1 / 7 in LaTeX with \boxed{}.|1/7
5 \neq 3|3
\frac{1}{\frac{1}{2}}|None
"""


@pytest.mark.parametrize("line", _READ.strip().splitlines())
def test_the_last_number_of_a_text(line):
  text, expected = line.rsplit("|", 1)
  found = numbers.find_last(text)
  assert (found and str(found.value)) == (
    None if expected == "None" else str(fractions.Fraction(expected))
  )


def test_a_text_of_many_lines():
  assert numbers.find_last("7\n- 5").value == -5
  assert numbers.find_last("x = 12\ny = 3.\nDone.").value == 3
  assert numbers.find_last("\\boxed{1} or \\boxed{2} of 9").value == 2
  assert numbers.find_last("\\boxed{1} or \\boxed{2").value == 1


@pytest.mark.parametrize(
  "text",
  [
    "9" * 5000,
    "1e99999",
    f"1e{'9' * 5000}",
    "(" * 5000 + "-" * 5000,
    "\\frac" * 999,
    "-" + " " * 50000,
    "\\a{" * 5000 + "}" * 5000,
    "\\boxed{" * 10000,
    "{" * 20000 + "}" * 20000,
    "1/" * 9000,
    "1" * 20000,
    "0." + "3" * 20000,
  ],
  ids=range(12),
)
def test_texts_that_cost_much(text):
  """They are not read, in no time."""
  assert numbers.find_last(text) is None
  built_in_rewards.choice(text, {"answer": "A"})


@pytest.mark.parametrize(
  "text", ["9 ", "1,111", "1,1111 ", "\n", "1:", "a1 ", "1.", "1_", "a_"]
)
def test_long_texts(text):
  assert numbers.find_last(20000 * text + " = 7").value == 7


# An answer, a completion, and whether it is right.
_VERDICTS = r"""
5|5|yes
5|The answer is 5.|yes
5|−5|no
5|- 5|no
5|.5|no
5|-5|no
-5|−5|yes
-5|- 5|yes
-5|5|no
-5|x = -5|yes
-5|10 - 5|no
5|10 - 5|yes
1234|1,234|yes
1234|1,234.|yes
1234|1{,}234|yes
1234|1234.0|yes
1234|1,23,4|no
1,234|1234|yes
1234|$1,234.00|yes
12|1,2|no
1000000|1000001|no
1000000|1,000,000|yes
0.5|1/2|yes
0.5|\frac{1}{2}|yes
0.5|\dfrac12|yes
0.5|.5|yes
0.5|50%|yes
0.5|5|no
0.5|0.50|yes
0.5|-.5|no
1/3|0.3333333|yes
1/3|0.33|no
1/3|\frac{1}{3}|yes
1/3|\frac{3}{1}|no
2/3|\frac23|yes
\frac{2}{3}|2/3|yes
3/4|6/8|yes
3/4|-\frac{3}{4}|no
7/4|1 3/4|yes
7/4|1\frac{3}{4}|yes
7/4|3/4|no
50|50%|yes
50%|50|yes
50%|50\%|yes
50%|0.5|yes
50%|5|no
50|0.5|no
2000|2e3|yes
2000|2 \times 10^3|yes
2000|2·10³|yes
2000|2 × 10^4|no
0.001|10^{-3}|yes
1000|10^3|yes
3|2^3|no
8|2^3 = 8|yes
3|x^3|no
2|x2|no
2|2x|no
2|2nd|no
2|2\pi|no
2|2\sqrt{3}|no
3|\sqrt{3}|no
3|3D|no
3|version 1.2.3|no
3|1.2.3|no
5|2024-05-05|no
30|10:30|no
1|192.168.0.1|no
4|GPT-4|no
5|$5|yes
5|-$5|no
5|5€|yes
5|5 kg|yes
5|5kg|yes
5|5.0 cm|yes
5|\boxed{5}|yes
5|\boxed{5} after 3 steps|yes
3|\boxed{5} after 3 steps|no
5|\boxed{x} or 5|no
5|\boxed{5\text{ apples}}|yes
5|\(5\)|yes
5|**5**|yes
5|"5"|yes
5|5!|yes
5|(5)|yes
-5|(-5)|yes
-5|\left(-5\right)|yes
5|５|yes
4|0-4|yes
-4|0-4|no
42|#### 42|yes
42|Answer: 42|yes
42|forty-two|no
42|nan|no
0|0|yes
0|-0|yes
0|none|no
1e3|1000|yes
-12.5|−12,5|no
-12.5|−12.50|yes
"""


@pytest.mark.parametrize("line", _VERDICTS.strip().splitlines())
def test_answers_that_are_right(line):
  answer, completion, expected = line.split("|")
  found = built_in_rewards.numeric(completion, {"answer": answer})
  assert found == (expected == "yes")


@pytest.mark.parametrize(
  ("completion", "answer", "found"),
  [
    ("It is 1,234.", "1234", "1234"),
    ("It is 3.5.", "3.50", "3.50"),
    ("It is −7", "5", "-7"),
    ("- 5", "5", "-5"),
    (".5", "5", "0.5"),
    ("none", "5", ""),
    ("1,235", "1234", "1235"),
    ("3/6", "2", "1/2"),
    ("7", "no number", "7"),
  ],
)
def test_answers_for_other_verifiers(completion, answer, found):
  """A right number is handed on as the answer is written."""
  extract = reasoning_gym_texts.EXTRACTIONS["last_number"]
  assert extract(completion, answer) == found


@pytest.mark.parametrize(
  ("completion", "letter"),
  [
    ("B", "B"),
    ("The answer is B.", "B"),
    ("Answer: (C)", "C"),
    ("answer: **D**", "D"),
    ("The answer is A. I am sure.", "A"),
    ("I think it is C", "C"),
    ("A good guess is D", "D"),
    ("(B) because I say so", "B"),
    ("B) as A is wrong and I know", "B"),
    ("\\boxed{C} not D", "C"),
    ("The answer is a guess: B", "B"),
    ("It's not A, it is B", "B"),
    ("A", "A"),
    ("I", "I"),
    ("Option I.", "I"),
    ("A is right, not B.", "A"),
    ("The answer is $D$.", "D"),
    ("\\boxed{\\text{D}}", "D"),
    ("A) 3\nB) 4\nThe answer is B", "B"),
    ("The answer is B. Option A is wrong.", "B"),
    ("The correct option is $C$; choice D is not.", "C"),
    ("B is the right answer, as option A is too small.", "B"),
    ("Option A is too small. I choose option D.", "D"),
    ("The best choice: \\text{A}. (B) is close.", "A"),
  ],
)
def test_the_option_that_is_chosen(completion, letter):
  for own in "ABCDI":
    right = built_in_rewards.choice(completion, {"answer": own})
    assert right == (own == letter), own
