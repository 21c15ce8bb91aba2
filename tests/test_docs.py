"""The documentation says what is so: its code runs, its links lead somewhere, its figures are those of the records."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

import pyro_vae as pv
from pyro_vae.cli.commands import COMMANDS
from pyro_vae.ops.choices import EstimatorName, Proposal

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("[be]*/README.md")])
README = (ROOT / "README.md").read_text()
ALL = "".join(page.read_text() for page in PAGES if page.name != "CHANGELOG.md")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

# Budgets are cut, nothing else.
CUTS = {
    r"num_epochs=\d+": "num_epochs=1",
    r"(?<=digits\.x_train), (?=.dynamic.)": "[:128], ",
    r"max_value\)\[:\]": "max_value)[:5]",
}


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Code


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks(page):
        for found, cut in CUTS.items():
            block = re.sub(found, cut, block)
        exec(block, namespace)


def test_pages_with_python_are_found():
    with_python = {page.name for page in PAGES if blocks(page)}
    assert with_python >= {"README.md", "models.md", "objectives.md", "evidence.md", "workflows.md", "missing-data.md"}


def test_two_set_up_lines_each_with_its_own_environment():
    lines = re.findall(r"^python3 -m venv (\S+) && .*$", README, flags=re.MULTILINE)
    assert lines == [".venv", ".venv-test"]


# Links and pictures


@every_page
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_an_anchor_is_what_github_makes_of_a_heading(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Estimating log p(x)\n\n## `pv.fit`, twice-told\n\n```sh\n# a comment\n```\n")
    assert anchors(page) == {"estimating-log-px", "pvfit-twice-told"}


def test_every_page_of_the_docs_is_in_their_index():
    index = (ROOT / "docs/README.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_example_is_in_the_gallery():
    gallery = (ROOT / "examples/README.md").read_text()
    for script in ROOT.glob("examples/*.py"):
        assert f"{script.name}" in gallery, script.name
        picture = ROOT / "examples/figures" / f"{script.stem}.png"
        assert not picture.exists() or f"(figures/{picture.name})" in gallery
    for picture in ROOT.glob("examples/figures/*.png"):
        assert (ROOT / "examples" / f"{picture.stem}.py").exists(), picture


def test_pictures_are_small():
    for picture in ROOT.glob("examples/figures/*.png"):
        assert picture.stat().st_size < 400_000, picture


# Completeness


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_every_objective_has_a_row():
    members = set(pv.objectives.__all__) - {"Objective"}
    assert members == set(re.findall(r"^\| `(\w+)\(", README, flags=re.MULTILINE))


def test_every_estimator_has_a_row():
    functions = {name for name in pv.evidence.__all__ if name.islower()} - {"recommend"}
    rows = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? ?\|", README, flags=re.MULTILINE)
    assert functions == {name for name, _ in rows}
    assert {"auto", *get_args(EstimatorName)} == {option for _, option in rows if option}


@pytest.mark.parametrize(
    "name",
    [
        *(name for parts in (pv.likelihoods, pv.posteriors, pv.priors) for name in parts.__all__),
        *(name for name in [*pv.presets.__all__, *pv.diagnostics.__all__] if name.islower()),
    ],
)
def test_every_part_preset_and_diagnostic_is_named(name):
    assert re.search(rf"`(pv\.\w+\.)?{name}`", ALL)


@pytest.mark.parametrize("proposal", get_args(Proposal))
def test_every_proposal_has_a_row(proposal):
    assert re.search(rf'^\| `"{proposal}"` \|', ALL, flags=re.MULTILINE)


def test_every_command_has_a_line():
    listing = re.search(r"```text\n(.*?)```", (ROOT / "docs/command-line.md").read_text(), flags=re.DOTALL)[1]
    assert list(COMMANDS) == re.findall(r"^pyro-vae (\w+)", listing, flags=re.MULTILINE)


def test_every_record_says_how_it_is_made():
    page = (ROOT / "benchmarks/README.md").read_text()
    for record in ROOT.glob("benchmarks/results/*.json"):
        assert f"`results/{record.name}` | `" in page, record.name


# Figures


def record(name):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())


def bounds_at_10_000(estimator):
    network = next(network for network in record("bounds_digits")["networks"] if network["objective"] == "ELBO")
    cells = {(cell["estimator"], cell["budget"]): cell for cell in network["cells"]}
    found = cells[estimator, 10_000]
    return f"{found['difference']:.4f} ± {found['monte_carlo_error']:.4f} nats, {found['ok']:.0%} ok"


def figures():
    """The figures of the README, as the records have them."""
    bounds = [row for row in record("digits_truth")["rows"] if row["side"] == "lower"]
    yield f"{len(bounds)} ways to train a bound"
    yield f"by {max(row['excess_in_standard_errors'] for row in bounds):.1f} standard errors at most"

    yield from map(bounds_at_10_000, ("IS, refined", "IS"))
    for name, digits in (("IS, refined, to 0.05", 3), ("IS, 100,000 draws", 2)):
        found = record("fifty_latents")["chains"][name]
        yield f"{found['mean']:.2f} ± {found['monte_carlo_error']:.{digits}f} nats in {found['seconds']:.0f} s"

    cost = {row["what"]: row for row in record("evidence_cost")["rows"]}
    yield f"5,000 draws: {1000 * cost['pyro_vae']['seconds per image']:.0f} ms per image"
    by_hand = min(row["time / pyro_vae"] for what, row in cost.items() if what.startswith("hand-written"))
    yield f"{by_hand:.1f} times as long, pythae's `get_nll` {cost['pythae get_nll']['time / pyro_vae']:.1f} times"
    gradients = {(row["num_particles"], row["gradient"]): row for row in record("gradient_cost")["rows"]}
    yield "{variance:.2f} of the variance at 50 particles, {time:.2f} of the time".format(**gradients[50, "dreg"])

    draws = [row for row in record("refinement")["rows"] if row["problem"] == "digits"]
    (chains,) = (row for row in draws if row["method"] == "HMC" and row["budget"]["num_draws"] == 4000)
    yield f"KL {chains['kl']:.3f}"
    yield f"the guide: {draws[0]['kl']:.3f}; exact draws: {draws[0]['kl_of_exact_draws']:.3f}"
    for name, start in (("the pair", "= "), ("the encoder alone", "alone: ")):
        found = record("inpainting")["answers"][name]
        yield f"{start}{found['log_p']:.2f} ± {found['test_set_error']:.2f} nats"
    prior = record("prior_vae")
    yield f"off by {prior['answers']['vae']['mean_error']:.3f} sd"
    yield f"{prior['answers']['one_gaussian']['mean_error']:.3f} sd; the exact process takes"
    yield f"takes {prior['time']['gp_over_vae']['gradient']:.0f} times as long per gradient"
    for row in record("digits")["estimates"]:
        draws, size = int(row["num_particles"]), row["median_ess"]
        yield f"{draws:>6}{row['nats']:>10.3f}      ± {row['monte_carlo_error']:.3f}    ± {row['test_set_error']:.2f}"
        yield f"{row['bits_per_dimension']:.3f}{size:>8.1f}"


def test_the_figures_of_the_readme_are_those_of_the_records():
    assert [figure for figure in figures() if figure not in README] == []
