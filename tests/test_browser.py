"""The browser of tests: what `look` finds, and how Debian packages are unpacked with what they depend on."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.browser import ROOT, look, opened, watch

WHOLE = "<!doctype html><html lang=en><title>t</title><body style='margin:0;background:#fff;color:#000'><h1>One</h1>{}</body></html>"
FAULTS = {
    "overflow": "<div style='width:2000px'>wide</div>",
    "sticking_out": "<div style='width:2000px'>wide</div>",
    "broken_images": "<img alt='' src='data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=='>",
    "faint_text": "<div style='background:#222'><p style='color:#555'>grey on grey</p></div>",
    "heading_jumps": "<h3>Three</h3>",
    "headless_tables": "<table><caption>c</caption><thead><tr><td>no header</td></tr></thead><tbody><tr><th scope=row>r</th></tr></tbody></table>",
    "unreachable_boxes": "<div class=scroll>box</div>",
    "doubled_ids": "<p id=a>x</p><p id=a>y</p>",
    "links_to_nowhere": "<a href='#b' style='color:#00c'>b</a>",
}


@pytest.mark.slow
def test_what_is_wrong_with_a_page_is_found(browser):
    with opened(browser, width=600) as page:
        page.set_content(WHOLE.format("<p>fine</p>"))
        assert look(page) == {}
        for fault, markup in FAULTS.items():
            page.set_content(WHOLE.format(markup))
            assert fault in look(page), fault
        wrong = watch(page)
        with page.expect_event("requestfailed"):
            page.set_content(WHOLE.format("<script>console.error('said'); throw new Error('thrown')</script><img src='http://127.0.0.1:9/x.png'>"))
        assert {line.partition(":")[0] for line in wrong} == {"console", "script", "request"}


@pytest.mark.slow
def test_packages_are_unpacked_with_what_they_depend_on(tmp_path):
    subprocess.run([ROOT / "scripts" / "unpack.sh", "--with-dependencies", tmp_path / "root", "jq"], check=True, capture_output=True, timeout=300)
    libraries = ":".join(sorted({str(path.parent) for path in (tmp_path / "root").rglob("*.so.*")}))
    answer = subprocess.run([tmp_path / "root/usr/bin/jq", "-n", "1+1"], check=True, capture_output=True, text=True,
                            env=os.environ | {"LD_LIBRARY_PATH": libraries})  # fmt: skip
    assert answer.stdout == "2\n"
