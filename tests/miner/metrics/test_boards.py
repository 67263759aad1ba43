"""The dashboard and the alert rules ask for what a miner exposes, and for nothing else."""

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client.samples import Sample

from miner.life import State
from miner.metrics.labels import FATES, OUTCOMES, REASON_CODES
from tests.support.promql import Used, used

DEPLOY = Path(__file__).parents[3] / "deploy"
BOARD = json.loads((DEPLOY / "grafana/dashboards/splat-miner.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS: dict[str, set[str]] = {"up": set()}
TARGET = {"job", "instance"}
"""Labels that Prometheus gives to every series that it scrapes."""

CLOSED: dict[str, set[str]] = {
    "state": {state.value for state in State},
    "outcome": set(OUTCOMES),
    "reason_code": set(REASON_CODES),
    "fate": set(FATES),
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


def queries() -> Iterator[tuple[str, str]]:
    """Where each query is, and the query."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in BOARD["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], annotation["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(
                r"label_values\((.*), (\w+)\)", variable["definition"]
            ).groups()  # type: ignore[union-attr]
            yield f"variable {variable['name']}", f"sum by ({label}) ({series})"
    for rule in RULES:
        yield rule["alert"], rule["expr"]


QUERIES = [pytest.param(query, id=f"{place}-{n}") for n, (place, query) in enumerate(queries())]


def labels_of(asked: Used, exposition: SimpleNamespace) -> set[str]:
    """Labels that the series of a query have between them."""
    exposed: dict[str, set[str]] = {**exposition.text.labels, **OF_PROMETHEUS}
    return TARGET.union(*(exposed[name] for name in asked.series))


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_series_and_labels_that_are_exposed(
    query: str, exposition: SimpleNamespace
) -> None:
    asked = used(query)
    exposed: dict[str, set[str]] = {**exposition.text.labels, **OF_PROMETHEUS}
    assert asked.series
    assert asked.series <= exposed.keys()
    for name, label, _ in asked.matched:
        assert label in exposed[name] | TARGET, name
    assert asked.grouped <= labels_of(asked, exposition)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_values_that_a_label_takes(
    query: str, exposition: SimpleNamespace
) -> None:
    for name, label, value in used(query).matched:
        if label in TARGET:
            assert value in (f"${label}", "splat-miner")
            continue
        samples: list[Sample] = exposition.text.samples
        seen = {sample.labels[label] for sample in samples if sample.name == name}
        assert value in seen | CLOSED.get(label, set()), (name, label)


def test_the_reader_of_queries_sees_what_is_asked() -> None:
    asked = used('sum by (le, a) (rate(x_bucket{k="v",m=~"p|q"}[5m])) > on (b) 0.5 * y or abs(z)')
    assert asked.series == {"x_bucket", "y", "z"}
    assert asked.matched == {("x_bucket", "k", "v"), ("x_bucket", "m", "p"), ("x_bucket", "m", "q")}
    assert asked.grouped == {"le", "a", "b"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_legend_names_labels_that_its_query_returns(
    panel: dict[str, Any], exposition: SimpleNamespace
) -> None:
    for target in panel["targets"]:
        asked = used(target["expr"])
        aggregated = re.search(r"\b(sum|min|max)\b", target["expr"])
        returned = asked.grouped if aggregated else labels_of(asked, exposition)
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= returned


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_where_and_how_bad(
    rule: dict[str, Any], exposition: SimpleNamespace
) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    texts = rule["annotations"]
    assert "$labels.instance" in texts["summary"]
    assert texts["description"]
    asked = used(rule["expr"])
    for label in re.findall(r"\$labels\.(\w+)", texts["summary"] + texts["description"]):
        assert label in labels_of(asked, exposition)


def test_the_board_shows_everything_that_is_exposed(exposition: SimpleNamespace) -> None:
    shown = {name for _, query in queries() for name in used(query).series}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    exposed = {name for name in exposition.text.labels if name.startswith("splat_miner_")}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed} == {
        name for name in families if name.startswith("splat_miner_")
    }


def test_the_panels_can_be_read_and_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in PANELS:
        assert panel["title"]
        assert len(panel["description"]) > 15
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, two in itertools.combinations(BOARD["panels"], 2):
        a, b = one["gridPos"], two["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one["title"], two["title"])


def test_seconds_bytes_and_shares_have_their_units() -> None:
    for panel in PANELS:
        asked = {name for target in panel["targets"] for name in used(target["expr"]).series}
        unit = panel["fieldConfig"]["defaults"].get("unit")
        query = panel["targets"][0]["expr"]
        if all("bytes" in name for name in asked):
            assert unit == "bytes", panel["title"]
        elif " / " not in query and any(name.endswith("_seconds") for name in asked):
            assert unit == "s", panel["title"]


def test_grafana_finds_the_source_and_the_board() -> None:
    folder = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/dashboards.yml").read_text())["providers"]
    settings = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == settings["global"]["scrape_interval"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert settings["rule_files"] == ["alerts.yml"]
    assert [job["job_name"] for job in settings["scrape_configs"]] == ["splat-miner"]


@needs_promtool
def test_promtool_accepts_the_configuration_and_every_query(tmp_path: Path) -> None:
    promtool("check", "config", str(DEPLOY / "prometheus/prometheus.yml"))
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "1m", query)}
        for number, (_, query) in enumerate(queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    promtool("check", "rules", str(file))


@needs_promtool
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    promtool("test", "rules", str(DEPLOY / "prometheus/alerts_test.yml"))


def test_every_alert_is_shown_to_fire() -> None:
    tests = (DEPLOY / "prometheus/alerts_test.yml").read_text()
    fired = set(re.findall(r'alertname="(\w+)"', tests))
    assert fired == {rule["alert"] for rule in RULES}


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
