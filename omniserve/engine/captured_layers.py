"""What a captured graph records: some layers of a step, on memory that stays where it is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from omniserve.devices.attention import StaticDecodes
from omniserve.engine.step_inputs import PENDING, StepInputs
from omniserve.engine.step_shapes import StepShape
from omniserve.models.decoder import DecoderModel
from omniserve.piggyback.lane_exchange import StagedExchange


@dataclass(frozen=True, slots=True)
class StaticStep:
    """What the graphs of one shape read anew at every replay."""

    shape: StepShape
    inputs: StepInputs
    attention: StaticDecodes | None
    """None where the shape has no resident rows."""
    exchange: StagedExchange | None
    """None where it has no lane rows."""

    @property
    def num_rows(self) -> int:
        """Before and behind every layer, resident rows first."""
        return self.shape.num_rows + self.shape.lane_width


def embed(model: DecoderModel, step: StaticStep, last_tokens: Tensor) -> Tensor:
    """Residual [rows, hidden_size] before the first layer; `last_tokens`: int64 [slots]."""
    inputs = step.inputs.views
    sampled = last_tokens[inputs.slots]
    tokens = torch.where(inputs.tokens == PENDING, sampled, inputs.tokens)
    return model.embed(torch.cat([tokens, inputs.entering]))


def run_layers(model: DecoderModel, step: StaticStep, layers: range, residual: Tensor) -> Tensor:
    """Residual [rows, hidden_size] behind these layers; lane rows leave and join in each."""
    inputs, num_resident = step.inputs.views, step.shape.num_rows
    positions = inputs.positions[layers.start : layers.stop]
    cos, signed_sin = model.rotary.at(positions.flatten())
    cos, signed_sin = cos.unflatten(0, positions.shape), signed_sin.unflatten(0, positions.shape)
    for place, index in enumerate(layers):
        layer, deltas = model.layers[index], model.deltas_of(index)
        q, k, v = layer.pre(residual, (cos[place], signed_sin[place]), deltas)
        kept, attended = [], []
        if step.attention is not None:
            rows = slice(num_resident)
            kept.append(residual[rows])
            attended.append(step.attention.run(index, q[rows], k[rows], v[rows]))
        if step.exchange is not None:
            rows = slice(num_resident, None)
            lanes = inputs.lanes[index]
            step.exchange.stage(lanes, residual[rows], q[rows], k[rows], v[rows])
            joining, outputs = step.exchange.join_lanes(inputs.lanes[index + 1])
            kept.append(joining)
            attended.append(outputs)
        residual = layer.post(torch.cat(kept), torch.cat(attended), deltas)
    return residual
