"""Where the points of a chart were drawn."""

from xml.etree import ElementTree


def points_of(chart: ElementTree.Element) -> list[tuple[float, float]]:
    found = []
    for shape in (*chart.iter("polyline"), *chart.iter("polygon")):
        for pair in shape.attrib["points"].split():
            x, y = pair.split(",")
            found.append((float(x), float(y)))
    return found
