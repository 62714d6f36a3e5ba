"""axe-core, run in a page: what would keep a person with a keyboard, a screen reader or weak eyes out of it.

The script is Deque's own (4.12.1, MPL-2.0), taken out of a Python package that ships it (``infra/build/locks/operators.txt``); nothing else of the package is
used, and the script runs only while it is that one, bit for bit.
"""

from hashlib import sha256
from importlib.resources import files

from tests.operators.browser import Browser

SHA256 = "84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc"
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice")
RUN = """(async () => {
  const found = await axe.run(document, {runOnly: %s, resultTypes: ["violations"]});
  return {passed: found.passes.map((rule) => rule.id),
          violations: found.violations.flatMap((rule) => rule.nodes.map((node) => `${rule.id}: ${rule.help}: ${node.html.slice(0, 200)}: ${node.failureSummary}`))};
})()"""


def assert_open_to_all(browser: Browser) -> None:
    """The page as it stands now breaks none of the rules of WCAG 2.1, A and AA, nor of good practice."""
    script = files("axe_playwright_python").joinpath("axe.min.js").read_bytes()
    assert sha256(script).hexdigest() == SHA256, "this is not the axe-core that was looked at; see infra/build/locks/operators.txt"
    browser.run(f"{script.decode()}; undefined")
    found = browser.run(RUN % list(RULES))
    assert {"color-contrast", "meta-viewport"} <= set(found["passed"]), found["passed"]
    assert not found["violations"], "\n\n".join(found["violations"])
