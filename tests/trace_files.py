"""Small files of every format of traces."""

from pathlib import Path

# The first rows of Azure's code trace of 2023, with the line ends of the original.
AZURE_ROWS = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319600,3180,8\r\n"
    "2023-11-16 18:17:04.0781490,110,27\r\n"
)
# Made by hand from the documented schema of BurstGPT; the second request failed.
BURSTGPT_ROWS = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,11,4.5,ChatGPT,472,18,490,Conversation log
45,12,,GPT-4,300,0,300,Conversation log
118.25,,2.0,GPT-4,417,276,693,API log
"""
# Made by hand: the columns of BurstGPT's first files.
BURSTGPT_SHORT_ROWS = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
6,ChatGPT,10,0,10,API log
"""
# Made by hand from the documented schema of Mooncake's traces; the last request failed.
MOONCAKE_ROWS = """\
{"timestamp": 27000, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 27000, "input_length": 1530, "output_length": 3, "hash_ids": [0, 1, 9]}
{"timestamp": 30001, "input_length": 20, "output_length": 0, "hash_ids": [7]}
"""
# Made by hand from the documented schema of APEX; the second request failed.
APEX_ROWS = """\
{"StartTimeOffset": 1000, "ContextTokens": 374, "GeneratedTokens": 44}
{"StartTimeOffset": 4314579000, "ContextTokens": 396, "GeneratedTokens": 0}
"""
HAND_MADE = {
    "azure": AZURE_ROWS,
    "burstgpt": BURSTGPT_ROWS,
    "mooncake": MOONCAKE_ROWS,
    "apex": APEX_ROWS,
    "omniserve": '{"omniserve_trace": 1, "name": "mine"}\n'
    '{"arrival_s": 0.5, "prompt_tokens": 7, "output_tokens": 0, "failed": true}\n',
}


def written(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path
