"""What the front holds of a model: enough to turn prompts into token ids and back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from omniserve.chat import ChatTemplate, check_messages
from omniserve.config import ModelConfig
from omniserve.errors import InvalidRequest
from omniserve.generation import ChatPrompt, Prompt
from omniserve.settings import ModelInfo
from omniserve.shown_number import shown_number
from omniserve.tenant_threads import TenantThreads
from omniserve.tokenization import ModelTokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Tokenizer and chat template of one configured model."""

    name: str
    tokenizer: ModelTokenizer
    chat_template: ChatTemplate | None

    @classmethod
    def load(cls, config: ModelConfig, threads: TenantThreads | None = None) -> Self:
        """Long texts are tokenised on `threads`; raises CheckpointError."""
        checkpoint = Path(config.checkpoint_path)
        adapter = None if config.base is None else Path(config.path)
        tokenizer = ModelTokenizer.load(checkpoint, threads)
        return cls(config.name, tokenizer, ChatTemplate.load(checkpoint, adapter))

    async def token_ids(
        self,
        prompt: Prompt,
        info: ModelInfo,
        name: str,
        tenant: str = "",
        on_tokenised: Callable[[int], None] = lambda num_tokens: None,
    ) -> tuple[int, ...]:
        """The prompt's tokens, which leave room for output. `name` is what messages call it.

        `on_tokenised` hears how many tokens a text has, be it refused for them.
        """
        # At least one token of output has to fit as well.
        max_tokens = info.max_model_len - 1
        if isinstance(prompt, tuple):
            token_ids = prompt
        else:
            is_text = isinstance(prompt, str)
            text = prompt if isinstance(prompt, str) else self._render(prompt)
            # A chat template writes its special tokens itself.
            token_ids = await self.tokenizer.encode(
                text, add_special_tokens=is_text, max_tokens=max_tokens, name=name, tenant=tenant
            )
            on_tokenised(len(token_ids))
        if not token_ids or prompt == "":
            raise InvalidRequest(f"{name}: is empty; at least one token is needed", name)
        # Also of a text: a tokenizer may know more tokens than the model has.
        check_token_ids(token_ids, info.vocab_size, name)
        if len(token_ids) > max_tokens:
            raise InvalidRequest(
                f"{name}: {len(token_ids)} tokens are too long; the model's context is "
                f"{info.max_model_len} tokens, prompt and output together",
                name,
            )
        return token_ids

    def detokenize(
        self, token_ids: tuple[int, ...], info: ModelInfo, *, keep_special_tokens: bool
    ) -> str:
        if len(token_ids) > info.max_model_len:
            message = f"{len(token_ids)} tokens are more than the {info.max_model_len} of the model"
            raise InvalidRequest(f"token_ids: {message}", "token_ids")
        check_token_ids(token_ids, info.vocab_size, "token_ids")
        return self.tokenizer.decode(token_ids, keep_special_tokens=keep_special_tokens)

    def _render(self, prompt: ChatPrompt) -> str:
        check_messages(prompt.messages)
        if self.chat_template is None:
            message = f"model {self.name!r} has no chat template; send a text or token ids"
            raise InvalidRequest(f"messages: {message}", "messages")
        return self.chat_template.render(prompt.messages)


def check_token_ids(token_ids: tuple[int, ...], vocab_size: int, name: str) -> None:
    """Raises InvalidRequest for ids outside of the vocabulary."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        message = f"token id {shown_number(wrong)} is not allowed; allowed: 0 to {vocab_size - 1}"
        raise InvalidRequest(f"{name}: {message}", name)
