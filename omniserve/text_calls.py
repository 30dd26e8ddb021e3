"""Texts to token ids and back, for callers who generate nothing."""

from collections.abc import Callable
from functools import partial

from omniserve.access.caller import ANYONE, Caller
from omniserve.access.quotas import QuotaLedger
from omniserve.access.refusal_pace import RefusalPace
from omniserve.errors import QuotaExceeded
from omniserve.generation import Prompt
from omniserve.request_checks import prompt_name
from omniserve.served_model import ServedModel
from omniserve.settings import ModelInfo


class TextCalls:
    """Tokenising counts as input of its tenant."""

    def __init__(
        self,
        model_of: Callable[[str, Caller], tuple[ServedModel, ModelInfo]],
        quotas: QuotaLedger,
        refusals: RefusalPace,
    ) -> None:
        """`model_of` is the model that a name or alias means to a caller; it raises InvalidRequest,
        UnknownModel, PermissionDenied or EngineUnavailable, and so do all calls here."""
        self._model_of = model_of
        self._quotas = quotas
        self._refusals = refusals

    async def tokenize(
        self, model: str, prompt: Prompt, caller: Caller = ANYONE
    ) -> tuple[int, ...]:
        """The token ids that generation would start from."""
        served, info = self._model_of(model, caller)
        name = prompt_name((prompt,), 0)
        if not caller.is_known:
            return await served.token_ids(prompt, info, name, caller.tenant)
        try:
            self._quotas.check_input(caller.tenant)
        except QuotaExceeded:
            await self._refusals.hold(caller.tenant)
            raise
        charge = partial(self._quotas.take_tokenised, caller.tenant)
        return await served.token_ids(prompt, info, name, caller.tenant, charge)

    def detokenize(
        self,
        model: str,
        token_ids: tuple[int, ...],
        *,
        keep_special_tokens: bool,
        caller: Caller = ANYONE,
    ) -> str:
        served, info = self._model_of(model, caller)
        return served.detokenize(token_ids, info, keep_special_tokens=keep_special_tokens)
