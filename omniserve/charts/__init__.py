"""Charts and pages that need nothing else: inline style, inline SVG, no scripts."""
