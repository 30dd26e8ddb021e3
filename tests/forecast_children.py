"""Processes that simulate tiers for this one."""

import psutil


def forecast_processes() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if _simulates_tiers(each)]


def _simulates_tiers(process: psutil.Process) -> bool:
    try:
        return "omniserve.reload.forecast_process" in process.cmdline()
    except psutil.Error:
        # It has just ended.
        return False
