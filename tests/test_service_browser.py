"""The pages in a real Chromium: three journeys, an upload that is cut, no script at all, the map, and axe on every page."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service_site import PASSWORD, Site, a_card, adapter, running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed (Debian: apt install chromium)", allow_module_level=True)
pytest.importorskip("playwright", reason="the package playwright is not installed (comgrad[dev])")
pytest.importorskip("axe_playwright_python", reason="the package axe-playwright-python is not installed (comgrad[dev])")

import uvicorn  # noqa: E402
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright  # noqa: E402

ARABIC = "تصنيف المشاعر"
TASK = "Recognise which of several intents a request to a voice assistant about travel expresses: book a flight or a hotel."
LONG = 60_000  # milliseconds that a job may take on a busy machine


@pytest.fixture(scope="module")
def site(zoo: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    named = {p.name: p for p in zoo}
    kept = ["auto-and-commute", "banking", "credit-cards", "home", "kitchen-and-dining", "meta"]
    with running(
        tmp_path_factory.mktemp("browser"),
        vectors=[*(named[f"intent-{n}"] for n in kept), named["probe-tree-depth"]],
        pages=True,
    ) as made:
        stored = [r.id for r in made.service.registry.store.list()]
        for at, identity in enumerate(stored[:6]):
            made.share(identity, "owner", f"public-{at}", "public", tags=["shared"])
        other = a_card(description=f"**{ARABIC}**\n\n- one\n- two\n", family=ARABIC, label_names=["نعم", "لا"])
        made.ids["OTHER"] = made.share(stored[6], "org", ARABIC, "private", card=other)
        made.ids["PUBLIC"], made.ids["SECOND"] = stored[0], stored[1]
        made.service.jobs.submit("relate", {}, key="relate")
        made.work_off()
        yield made


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    """The same service on a real port of this machine."""
    server = uvicorn.Server(uvicorn.Config(site.client.app, port=0, lifespan="off", log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    playwright: Playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """A tab whose page may not log an error."""

    def __init__(self, chromium: Browser, address: str, **options: Any) -> None:
        self.context: BrowserContext = chromium.new_context(base_url=address, reduced_motion="reduce", **options)
        self.context.set_default_timeout(LONG)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("console", lambda m: self.said.append(m.text) if m.type == "error" else None)
        self.page.on("request", lambda r: None if r.url.startswith((address, "data:")) else self.said.append(r.url))

    def sign_in(self, handle: str = "bob") -> Reader:
        self.page.goto("/login")
        self.page.get_by_label("Handle").fill(handle)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("link", name=handle, exact=True)).to_be_visible()
        return self

    def hand_in(self, files: dict[str, bytes], button: str) -> None:
        """Choose files, send them, and wait until the job is over."""
        sent = [{"name": n, "mimeType": "application/octet-stream", "buffer": b} for n, b in files.items()]
        self.page.get_by_label("Adapter files").set_input_files(sent)
        self.page.get_by_role("button", name=button).click()
        self.page.wait_for_url("**/jobs/**")
        self.page.locator("[data-job]").wait_for(state="detached")


@pytest.fixture
def reader(chromium: Browser, address: str) -> Iterator[Reader]:
    made = Reader(chromium, address)
    yield made
    made.context.close()
    assert not made.said


# -- the three journeys ------------------------------------------------------------------------------------------------
def test_describe_download_and_load_in_stock_peft(reader: Reader, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    from comgrad.weights.bases import resolve_base

    page = reader.page
    page.goto("/")
    page.get_by_label("Describe your task").fill(TASK)
    page.get_by_role("button", name="Suggest a start").click()
    page.wait_for_url("**/suggestions/**")
    guess = page.get_by_role("button", name="Show the guess all the same")
    if guess.count():  # of so few vectors the rule may make none
        guess.click()
        page.get_by_role("link", name="Download the adapter").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the adapter").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    lines = page.locator("pre").inner_text().splitlines()
    assert len(lines) == 3
    folder = next(tmp_path.iterdir())
    assert f'"{folder.name}"' in lines[2]
    base = AutoModel.from_pretrained(str(resolve_base("sentence-transformers/all-MiniLM-L6-v2").path))
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    lora = {n: p for n, p in model.named_parameters() if "lora_B" in n}
    assert lora
    assert all(p.requires_grad for p in lora.values())
    assert sum(float(p.detach().norm()) for p in lora.values()) > 0


def test_upload_and_see_it_on_the_map(reader: Reader, zoo: list[Path]) -> None:
    page = reader.sign_in().page
    page.goto("/share")
    page.get_by_label("Name", exact=True).fill("from a browser")
    reader.hand_in(adapter(next(p for p in zoo if p.name == "probe-voice")), "Share it")
    page.get_by_role("link", name="See it on the map").click()
    canvas = page.get_by_role("application")
    expect(canvas).to_be_visible()
    page.get_by_label("Find on the map").fill("from a browser")
    expect(page.locator("[data-said]")).to_have_text("1 found")
    page.get_by_label("Find on the map").press("Enter")
    expect(page.locator(".tip")).to_contain_text("bob/from a browser")
    expect(page.get_by_role("main").get_by_role("link", name="bob/from a browser")).to_be_visible()  # the list
    canvas.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/vectors/tv-*")
    expect(page.get_by_role("heading", level=1)).to_have_text("from a browser")


def test_explain_a_strangers_adapter(reader: Reader, zoo: list[Path]) -> None:
    page = reader.sign_in("eve").page
    page.goto("/explain")
    page.get_by_label("What it is said to do").fill("Tell the sentiment of poems")
    stranger = adapter(next(p for p in zoo if p.name == "hatecheck-functional"))
    reader.hand_in({n: b for n, b in stranger.items() if n != "task_card.json"}, "Explain it")
    words = page.get_by_role("main").inner_text()
    for part in (
        "Tell the sentiment of poems",
        "Nearest known tasks",
        "Evidence",
        "What this cannot tell",
        "explained by none",
    ):
        assert part in words
    assert "is safe" not in words.replace("no result here means that a vector is safe", "")
    with page.expect_download() as report:
        page.get_by_role("link", name="download as a page").click()
    assert "<html" in Path(report.value.path()).read_text("utf-8")


# -- uploads that go wrong ---------------------------------------------------------------------------------------------
def test_a_cut_upload_goes_on_where_it_was(reader: Reader, zoo: list[Path]) -> None:
    page, cut, sent = reader.sign_in().page, [], []
    page.goto("/explain")
    page.locator("form[data-upload]").evaluate("form => { form.dataset.chunk = '100000' }")

    def once(route: Any) -> None:
        if len(sent) == 2 and not cut:
            cut.append(route.request.url)
            route.abort()
        else:
            sent.append(int(route.request.headers["upload-offset"]))
            route.continue_()

    page.route(
        "**/api/v1/uploads/*/parts/adapter_model.safetensors",
        lambda r: once(r) if r.request.method == "PATCH" else r.continue_(),
    )
    reader.hand_in(adapter(next(p for p in zoo if p.name == "intent-small-talk")), "Explain it")
    assert cut
    assert sent == sorted(set(sent))  # nothing was sent twice
    assert len(sent) >= 4
    reader.said.clear()  # the browser logs the cut


def test_a_refused_file_says_why(reader: Reader) -> None:
    page = reader.sign_in().page
    page.goto("/explain")
    reader.hand_in(
        {"adapter_model.safetensors": b"PK\x03\x04 no tensors at all", "adapter_config.json": b"{}"}, "Explain it"
    )
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Stopped")
    page.goto("/share")
    page.get_by_label("Adapter files").set_input_files([{"name": "model.bin", "mimeType": "", "buffer": b"x"}])
    expect(page.locator("[data-picked]")).to_contain_text("left out: model.bin")
    expect(page.get_by_role("button", name="Share it")).to_be_disabled()


# -- without script, on a phone, by keyboard ---------------------------------------------------------------------------
def test_everything_but_uploads_works_without_script(chromium: Browser, address: str, site: Site) -> None:
    reader = Reader(chromium, address, java_script_enabled=False).sign_in()
    page = reader.page
    page.get_by_role("button", name="Theme: auto").click()
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.goto("/")
    page.get_by_label("Describe your task").fill(TASK)
    page.get_by_role("button", name="Suggest a start").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(TASK)
    page.goto("/map")
    expect(page.locator("svg.still circle").first).to_be_visible()
    page.get_by_role("main").get_by_role("link", name="bob/public-0").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("public-0")
    page.goto("/share")
    assert "needs JavaScript in a browser" in page.locator("noscript").first.inner_html()
    reader.context.close()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(chromium: Browser, address: str, site: Site, width: int) -> None:
    reader = Reader(chromium, address, viewport={"width": width, "height": 800}).sign_in("ora")
    for path in every_page(site):
        reader.page.goto(path)
        wide = reader.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, path
    reader.context.close()


def test_the_map_by_keyboard_with_ten_thousand_points(reader: Reader) -> None:
    """Hover and keys on 10 000 points; how long a frame takes is told by benchmarks/mapping.py."""
    page = reader.page
    points = [
        {"id": f"tv-{i:016x}", "name": f"task {i}", "family": f"family {i % 14}", "description": f"Task number {i}.", "cluster": 0,
         "x": math.sqrt(i) * math.cos(2.4 * i), "y": math.sqrt(i) * math.sin(2.4 * i)} for i in range(10_000)
    ]  # fmt: skip
    page.route(
        "**/api/v1/map",
        lambda r: r.fulfill(body=json.dumps({"points": points, "exact": 0}), content_type="application/json"),
    )
    page.goto("/map")
    canvas = page.get_by_role("application")
    expect(canvas).to_be_visible()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("[data-said]").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-said]").inner_text() != first
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator(".tip")).to_contain_text("Task number")
    expect(page.locator(".tip")).to_contain_text("Its place is approximate.")


def test_pages_do_not_jump_while_they_load(chromium: Browser, address: str, site: Site) -> None:
    reader = Reader(chromium, address)
    reader.page.add_init_script(
        "window.shift = 0; new PerformanceObserver((l) => { for (const e of l.getEntries()) window.shift += e.value })"
        ".observe({ type: 'layout-shift', buffered: true })"
    )
    for path in every_page(site)[:9]:
        reader.page.goto(path, wait_until="networkidle" if path == "/" or path.startswith("/map") else "load")
        assert reader.page.evaluate("window.shift") < 0.02, path
    reader.context.close()


# -- accessibility -------------------------------------------------------------------------------------------------------
def every_page(site: Site) -> list[str]:
    """The address of every page that a member can open."""
    pair = f"a={site.ids['PUBLIC']}&b={site.ids['OTHER']}"
    return [
        "/", "/vectors", "/vectors?q=request", f"/vectors/{site.ids['OTHER']}", f"/vectors/{site.ids['PUBLIC']}",
        f"/compare?{pair}", f"/map?focus={site.ids['PUBLIC']}", "/trends", "/nothing-here", "/explain", "/share", "/account",
        "/organisations", "/jobs", "/invitation", *site.ids.get("MORE", "").split(),
    ]  # fmt: skip


def findings(page: Page, only: list[str] | None = None) -> list[str]:
    options = {"resultTypes": ["violations"]} | ({"runOnly": {"type": "rule", "values": only}} if only else {})
    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    return [
        f"{v['id']} ({v['impact']}): {n['html'][:200]} {n['failureSummary'][:300]}"
        for v in found if v["impact"] in ("serious", "critical") for n in v["nodes"]
    ]  # fmt: skip


def test_axe_finds_nothing_serious_on_any_page_in_both_themes(
    chromium: Browser, address: str, site: Site, zoo: list[Path]
) -> None:
    member, anybody, admin = (Reader(chromium, address, color_scheme="light") for _ in range(3))
    member.sign_in("ora")
    admin.sign_in("ann")
    anybody.page.goto("/")
    for dare in (False, True):  # an abstention or a suggestion, and a suggestion for certain
        made = site.call("anonymous", "POST", "/api/v1/suggestions", json={"text": TASK, "dare": dare}).json()
        site.ids["MORE"] = f"{site.ids.get('MORE', '')} /suggestions/{made['id']}"
    files = {
        n: b
        for n, b in adapter(next(p for p in zoo if p.name == "hatecheck-functional")).items()
        if n != "task_card.json"
    }
    job = site.upload("other", files, purpose="explain").json()["job"]["id"]
    eve = Reader(chromium, address, color_scheme="light").sign_in("eve")
    asked = site.call("org-admin", "PUT", "/api/v1/orgs/lab/invitations/ann", json={"role": "admin"})
    assert asked.status_code == 200
    rows = [(member, p) for p in every_page(site)] + [(member, "/organisations/lab"), (eve, f"/jobs/{job}")]
    rows += [(anybody, p) for p in ("/login", "/reset", "/explain", "/nothing-here")]
    rows += [(admin, p) for p in ("/people", "/audit", "/organisations")]
    for reader, path in rows:
        page = reader.page
        page.emulate_media(color_scheme="light")
        page.goto(path)
        if path.startswith("/map"):
            page.get_by_role("application").wait_for()
        assert not findings(page), path
        page.emulate_media(color_scheme="dark")
        assert not findings(page, ["color-contrast", "link-in-text-block"]), f"{path} in the dark"
    for reader in (member, anybody, admin, eve):
        reader.context.close()


def test_the_accessibility_check_can_fail(reader: Reader) -> None:
    reader.page.goto("/login")
    reader.page.evaluate("document.querySelector('#handle').removeAttribute('id')")
    assert any("label" in f for f in findings(reader.page))
