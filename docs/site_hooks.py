"""Fits the pages of docs/ into the site, which has no files beside them.

Links to files outside of docs/, such as the source code, work where the project
is browsed as a folder. On the site their text is kept.
"""

import re

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!tutorials|api)[^)]*\)")
_EXAMPLES = re.compile(r"\[([^\]]+)\]\((?:\.\./)*examples/[^)]*\)")


_PAGES = re.compile(r'href="(?!\w+:)([^"#]+)\.(?:md|ipynb)(#[^"]*)?"')


def on_post_page(output: str, page, **_) -> str:
  """Links notebooks to the pages that Markdown files become."""
  if not page.file.src_uri.endswith(".ipynb"):
    return output
  return _PAGES.sub(r'href="\1.html\2"', output)


def on_page_markdown(markdown: str, page, **_) -> str:
  """Replaces links to files outside of the site by their text."""
  if page.file.src_uri.startswith(("tutorials/", "api/")):
    return markdown  # Their ".." is inside.
  return _EXAMPLES.sub(r"\1", _OUTSIDE.sub(r"\1", markdown))
