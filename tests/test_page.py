"""The page, in a real browser, against a real server."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gluon_resnetv2 import data
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.exports.export import export, export_run
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.formats.manifest import write_manifest
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named
from gluon_resnetv2.training.recipe import Recipe
from tests.common import randomise
from tests.pictures import write_pictures
from tests.test_training import train

PAGE = Path(__file__).parents[1] / "gluon_resnetv2" / "serving" / "page.html"
SIZE = 16  # pixels, which a network learns in seconds
EVIL = "<img src=x onerror=alert(1)>"  # a class's name
PATIENCE = 20  # seconds
RECIPE = Recipe(
    model="preact8",
    unit="basic",
    dataset="digits",
    image_size=SIZE,
    num_epochs=8,
    lr_step_epochs=(5.0, 7.0),
    warmup_steps=20,
    batch_size=64,
)


@pytest.mark.parametrize("tag", ["style", "script"])
def test_only_what_is_in_the_page_may_run(tag):
    """Tells the hash to put into the page where it was changed."""
    text = PAGE.read_text(encoding="utf-8")
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    assert f"{tag}-src 'sha256-{digest}'" in text
    assert "innerHTML" not in text
    assert "unsafe" not in text


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A network that knows digits, the same with a class that has a hostile name, and two of grey
    images that know nothing, of letters and of MNIST's digits.
    """
    folder = tmp_path_factory.mktemp("exports")
    train(folder / "run", RECIPE, dataset=data.load("digits", image_size=SIZE))
    digits = export_run(folder / "run", folder / "digits").folder
    hostile = shutil.copytree(digits, folder / "hostile")
    manifest = json.loads((hostile / "manifest.json").read_text(encoding="utf-8"))
    manifest["classes"] = [EVIL] * 10
    write_manifest(hostile, manifest)
    net = ResNetV2(named("preact8", unit="basic", in_channels=1))
    randomise(net)
    grey = {"grey": "abcdefghij", "mnist": "0123456789"}
    for name, classes in grey.items():
        about = {"classes": list(classes), "mean": [80.0], "std": [60.0]}
        export(net, folder / name, (1, 28, 28), **about)
    models = [f"{name}={folder / name}" for name in grey]
    return [f"digits={digits}", f"hostile={hostile}", *models]


@pytest.fixture(scope="module")
def server(exports, tmp_path_factory):
    """Its process, whose attribute `url` is where it listens."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "gluon_resnetv2", "serve", *exports]
    command += ["--page", "--port", "0", "--max-batch", "4", "--body-limit", "0.1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    with process:
        try:
            line = process.stdout.readline()
            assert "http" in line, log.read_text()
            process.url = re.search(r"http://\S+", line)[0] + "/"
            yield process
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium; on Debian: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """The page as somebody uses it."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # forgets what was before
        browser.get(url)
        self.wait(lambda: self["model"].get_attribute("value"))

    def __getitem__(self, id):
        return self.browser.find_element("id", id)

    def wait(self, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, PATIENCE, 0.05).until(lambda _: condition())

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def draw(self, lines, tool="mouse"):
        """Draws lines [[(x, y), ...], ...], of 0 to 1 along the stage's sides."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        script = "const r = arguments[0].getBoundingClientRect(); return [r.x, r.y, r.width]"
        left, top, side = self.browser.execute_script(script, self["stage"])
        actions = ActionBuilder(self.browser, PointerInput(tool, tool), duration=0)
        pen = actions.pointer_action

        def place(point):
            return int(left + point[0] * side), int(top + point[1] * side)

        for first, *others in lines:
            pen.move_to_location(*place(first)).pointer_down()
            for point in others:
                pen.move_to_location(*place(point))
            pen.pointer_up()
        actions.perform()

    def answers(self):
        """[(class, percent), ...] for what was last drawn or chosen."""
        rows = "[aria-busy=false] li"
        self.wait(lambda: self.browser.find_elements("css selector", rows))
        found = self.browser.find_elements("css selector", rows)
        return [tuple(row.text.splitlines()) for row in found]

    def clear(self):
        self["clear"].click()
        self.wait(lambda: not self["classes"].find_elements("tag name", "li"))

    def errors(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requests(self):
        """The addresses that were asked for."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        ]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture
def page(chromium, server):
    page = Page(chromium, server.url)
    yield page
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def held_out(digit) -> np.ndarray:
    """The first test image of a digit, as the 8x8 grey levels of the source, 0 to 255."""
    test = data.load("digits", image_size=8).test
    return test.images[test.labels == digit][0, ..., 0]


def lines(cells):
    """Lines that join the centres of all cells of ink that touch, in the middle of the stage.

    Cells that touch by a corner alone are joined only where no third cell does it.
    """
    ink = {(int(x), int(y)) for y, x in np.argwhere(cells > 110)}
    joins = set()
    for x, y in ink:
        for right, down in ((1, 0), (0, 1), (1, 1), (-1, 1)):
            between = {(x + right, y), (x, y + down)} if right and down else set()
            if (x + right, y + down) in ink and not between & ink:
                joins.add(frozenset({(x, y), (x + right, y + down)}))
    found = []
    while joins:
        line = list(joins.pop())
        while following := [join for join in joins if line[-1] in join]:
            joins.remove(following[0])
            line += following[0] - {line[-1]}
        found.append([(0.15 + x / 10, 0.15 + y / 10) for x, y in line])
    return found


def test_a_drawn_digit_is_recognised(page):
    right = 0
    for digit in range(10):
        page.draw(lines(held_out(digit)), tool=("mouse", "touch", "pen")[digit % 3])
        (first, percent), *others = page.answers()
        assert page["answer"].text.split() == [first, *percent.split()]
        assert len(others) == 4
        right += first == str(digit)
        page.clear()
    assert right >= 7  # of test images in two levels of grey the network knows about nine in ten
    assert page.errors() == []
    asked = page.requests()
    assert f"{page.url}v2/models/digits/infer" in asked
    assert [url for url in asked if not url.startswith((page.url, "data:"))] == []


@pytest.mark.parametrize("corner", [(0.1, 0.1), (0.6, 0.5)])
def test_what_is_drawn_for_mnist_is_framed_as_its_images_are(page, corner):
    """In a box of 20 pixels of 28, the centre of mass in the middle, says MNIST's page."""
    from selenium.webdriver.support.ui import Select

    Select(page["model"]).select_by_value("mnist")
    page.wait(lambda: page["model"].get_attribute("value") == "mnist")
    left, top = corner
    page.draw([[(left, top), (left, top + 0.3), (left + 0.15, top + 0.3)]])  # an L: heavy below
    page.answers()
    script = """
        const {width, height} = arguments[0], context = arguments[0].getContext("2d");
        return [width, height, ...context.getImageData(0, 0, width, height).data];
    """
    width, height, *values = page.browser.execute_script(script, page["seen"])
    image = np.array(values, float).reshape(height, width, 4)[..., 0]
    assert image.shape == (28, 28)
    rows, columns = np.nonzero(image > 60)
    assert np.ptp(rows) + 1 == pytest.approx(20, abs=1)
    assert np.ptp(columns) + 1 == pytest.approx(11, abs=2)
    centre = [np.average(np.arange(28), weights=image.sum(axis=axis)) for axis in (0, 1)]
    assert centre == pytest.approx([13.5, 13.5], abs=0.3)
    assert abs(rows.mean() - (rows.min() + rows.max()) / 2) > 1  # which the box's middle is not


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window(page, width, scheme, tmp_path):
    """Leaves a picture to be looked at."""
    phone = width < 700
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": phone}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    page.draw(lines(held_out(3)))
    page.answers()
    root = "document.documentElement"
    across, down = page.browser.execute_script(f"return [{root}.scrollWidth, {root}.scrollHeight]")
    assert across == width
    metrics["height"] = max(down, 800)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    picture = tmp_path / f"page-{width}-{scheme['value']}.png"
    assert page.browser.save_screenshot(str(picture))
    with Image.open(picture) as image:
        assert image.width == 2 * width


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_an_image_file_is_classified(page, tmp_path, way):
    test = data.load("digits", image_size=SIZE).test
    for image, label in zip(test.images[:2], test.labels):  # different digits
        path = tmp_path / f"{label}.png"
        Image.fromarray(image).save(path)
        if way == "choose":
            page["file"].send_keys(str(path))
        else:
            content = base64.b64encode(path.read_bytes()).decode()
            page.browser.execute_script(BRING, way, content)
        page.wait(lambda label=label: page["answer"].text.startswith(str(label)))
    assert "ms there and back" in page["about"].text
    assert page.errors() == []


@pytest.mark.parametrize("model", ["digits", "grey"])
def test_a_picture_in_any_encoding_has_the_scores_that_predict_gives_it(
    page, exports, model, tmp_path
):
    from selenium.webdriver.support.ui import Select

    write_pictures(tmp_path)
    paths = [path for path in tmp_path.iterdir() if path.suffix in (".png", ".jpg")]
    assert len(paths) == 4 * 9
    if model == "grey":  # which is made of the same three
        paths = [path for path in paths if path.name.startswith("wide-")]
    (folder,) = [each.partition("=")[2] for each in exports if each.startswith(f"{model}=")]
    predictor = Predictor(load(folder), max_batch=1)
    Select(page["model"]).select_by_value(model)
    page.wait(lambda: (page["title"].text == "Draw a digit") == (model == "digits"))
    page.browser.execute_script(LISTEN)
    for path in paths:
        pixels = predictor.read(path)[None]
        (expected,) = predictor.probabilities(pixels)
        page["file"].send_keys(str(path))
        page.wait(lambda: page.browser.execute_script("return window.heard.length"))
        (answer,) = page.browser.execute_script("return window.heard.splice(0)")
        (tensor,) = [each for each in answer["outputs"] if each["name"] == "probabilities"]
        np.testing.assert_allclose(tensor["data"], expected, rtol=0, atol=1e-6, err_msg=path.name)
        found = sent(f"{page.url}v2/models/{model}/infer", np.uint8(pixels))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6, err_msg=path.name)
    assert page.errors() == []


def sent(url, pixels):
    """The server's probabilities of an image (1, C, H, W) in 0 to 255, sent as such."""
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": pixels.shape}
    asked = {"inputs": [{**tensor, "data": pixels.ravel().tolist()}]}
    asked["outputs"] = [{"name": "probabilities"}]
    body, headers = json.dumps(asked).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        return json.load(answer)["outputs"][0]["data"]


LISTEN = """
const fetched = window.fetch;
window.heard = [];
window.fetch = async (...asked) => {
  const answer = await fetched(...asked);
  window.heard.push(await answer.clone().json());
  return answer;
};
"""
BRING = """
const [way, content] = arguments, data = new DataTransfer();
const bytes = Uint8Array.from(atob(content), character => character.charCodeAt(0));
data.items.add(new File([bytes], "digit.png", {type: "image/png"}));
document.dispatchEvent(way === "drop" ? new DragEvent("drop", {dataTransfer: data})
                                      : new ClipboardEvent("paste", {clipboardData: data}));
"""


def test_everything_can_be_done_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    focused = []
    for _ in range(4):
        page.press(Keys.TAB)
        element = page.browser.switch_to.active_element
        focused.append(element.get_attribute("id"))
        shown = page["file"].find_element("xpath", "following-sibling::label")
        target = shown if focused[-1] == "file" else element
        assert target.value_of_css_property("outline-style") == "solid"
    assert focused == ["model", "stage", "clear", "file"]
    page["stage"].send_keys(" ", *[Keys.ARROW_DOWN] * 12, " ")
    assert page.answers()[0][0] == "1"
    assert page["pen"].get_attribute("textContent") == "Pen lifted"
    page["stage"].send_keys(Keys.DELETE)
    page.wait(lambda: not page["classes"].find_elements("tag name", "li"))
    assert page["answer"].get_attribute("aria-live") == "polite"
    assert page.errors() == []


def test_a_name_is_text_whatever_it_holds(page, tmp_path):
    from selenium.webdriver.support.ui import Select

    Select(page["model"]).select_by_value("hostile")
    page.wait(lambda: page["title"].text == "Try an image")  # what is no digit is not drawn
    Image.fromarray(held_out(3)).save(tmp_path / "digit.png")
    page["file"].send_keys(str(tmp_path / "digit.png"))
    names = [name for name, _ in page.answers()]
    assert len(names) == 5
    assert all(re.fullmatch(rf"{re.escape(EVIL)} \(\d\)", name) for name in names)
    assert page.errors() == []


def test_errors_are_told_in_words(page, tmp_path):
    def choose(name):
        page["file"].send_keys(str(tmp_path / name))

    def told(message):
        page.wait(lambda: page["alert"].text == message)

    (tmp_path / "text.png").write_text("no image")
    choose("text.png")
    told("text.png is no image that can be read.")
    Image.fromarray(held_out(3)).save(tmp_path / "digit.gif")
    choose("digit.gif")
    told("image 0 is neither a JPEG nor a PNG file")  # the server's own words
    noise = np.random.RandomState(0).randint(0, 256, (300, 300, 3), dtype="uint8")
    Image.fromarray(noise).save(tmp_path / "large.png")
    choose("large.png")
    told("The image is larger than the server takes.")

    Image.fromarray(held_out(3)).save(tmp_path / "digit.png")
    network = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    choose("digit.png")
    told("The server can't be reached. Is it still running?")
    network["offline"] = False
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    choose("digit.png")
    assert page.answers()
    assert page["alert"].text == ""

    busy = "new Response('{}', {status: 503, headers: {'Retry-After': '7'}})"
    page.browser.execute_script(f"window.fetch = async () => {busy}")
    choose("digit.png")
    told("The server is busy. Try again in 7 s.")
