"""AnyMAL: modality tokens from frozen encoders through projectors into a frozen LLM (paper section 3.1)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anymal.data.features import TRAINED_ENCODER
from anymal.data.manifest import write_manifest
from anymal.data.tensors import save_tensors
from anymal.errors import BundleError, ConfigError, DataError, NumericalError
from anymal.model.adapter import load_adapter, merge_adapter
from anymal.model.checkpoint import METADATA, WEIGHTS, read_checkpoints
from anymal.model.encoders import Encoder, load_encoder
from anymal.model.llm import PrefixCache, load_llm
from anymal.model.projectors import build_projector
from anymal.model.prompt import Exchange, Pieces, Prompt, Template, answer_ids, tokenize, tokenize_dialogue
from anymal.progress import track


@dataclass(frozen=True)
class TokenLosses:
    """Negative log-likelihoods of the target tokens of a batch, all samples one after another, in nats."""

    values: Tensor
    """(target tokens of the whole batch,), float32."""
    lengths: list[int]
    """Target tokens of each sample."""


class Completion(NamedTuple):
    """What was generated after a prompt."""

    text: str
    """Without the end of turn, stripped of surrounding white space."""
    finish: Literal["stop", "length"]
    """Whether the end of turn was generated, or the greatest number of tokens came first."""


class AnyMAL(nn.Module):
    """A frozen causal LM that reads media through one projector per modality.

    Args:
        llm: a frozen causal LM of transformers; never rewritten, only called with embeddings.
        tokenizer: its tokenizer, with a chat template.
        projectors: modality -> module from (batch, tokens, encoder dim) to (batch, tokens, LLM dim).
        templates: modality -> the prompts it was trained with, by name ("caption", "question").
        metadata: modality -> what its checkpoint records (encoder, projector, …).
        encoder_folders: modality -> asset folder of its encoder, loaded only when `encode` is called.
    """

    def __init__(self, llm: Any, tokenizer: Any, projectors: Mapping[str, nn.Module], *, templates: Mapping[str, Mapping[str, Template]],
                 metadata: Mapping[str, dict[str, Any]], encoder_folders: Mapping[str, Path]) -> None:
        super().__init__()
        self.llm = llm
        self.tokenizer = tokenizer
        self.projectors = nn.ModuleDict(projectors)
        self.templates = {modality: dict(by_name) for modality, by_name in templates.items()}
        self.metadata = dict(metadata)
        self._encoder_folders = dict(encoder_folders)
        self._encoders: dict[str, Encoder] = {}
        self._prefixes = PrefixCache(llm)
        self.shares_prefixes = True
        """Whether what all prompts of a batch begin with goes through the LLM once; gradient checkpointing does not allow it."""

    def checkpoint_gradients(self) -> None:
        """Recompute the LLM's activations in the backward pass: memory of one block at a time, at the price of a second forward pass.

        Raises:
            ConfigError: if the LLM has dropout, which the training mode that this needs would switch on.
        """
        if rate := getattr(self.llm.config, "attention_dropout", 0.0):
            raise ConfigError(f"gradient_checkpointing: the LLM has attention_dropout = {rate}; set it to 0 in its config.json, or switch "
                              "gradient_checkpointing off")
        self.llm.activation_checkpointing_enable({"use_reentrant": False})
        self.llm.train()
        self.shares_prefixes = False

    def blocks(self) -> list[nn.Module]:
        """The LLM's blocks, in order."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [module for module in self.llm.modules() if isinstance(module, GradientCheckpointingLayer)]

    @property
    def end_of_turn(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    def encoder(self, modality: str) -> Encoder:
        """The frozen encoder of a modality, loaded on first use.

        Raises:
            DataError: naming the modality, if the model has no projector for it.
        """
        self._check_reads(modality)
        if modality not in self._encoders:
            spec = self.metadata[modality]["encoder"]
            self._encoders[modality] = load_encoder(spec["kind"], self._encoder_folders[modality], spec["settings"])
        return self._encoders[modality]

    def _check_reads(self, modality: str) -> None:
        if modality not in self.projectors:
            raise DataError(f"this model has no projector for '{modality}'; it reads {', '.join(self.projectors) or 'text only'}")

    def encode(self, modality: str, media: Sequence[np.ndarray]) -> list[Tensor]:
        """Features of media as the encoder's `read` gave them, each (tokens, encoder dim), float16 as the feature shards hold them."""
        encoder = self.encoder(modality)
        return [encoder.forward(torch.from_numpy(medium)[None])[0].half() for medium in media]

    def tokenize(self, prompt: Prompt) -> Pieces:
        """One tokenisation path for training, scoring and generation.

        Raises:
            DataError: if placeholders and media do not match, or a medium's modality has no projector.
        """
        for medium in prompt.media:
            self._check_reads(medium.modality)
        return tokenize(prompt, self.tokenizer)

    def tokenize_dialogue(self, prompt: Prompt) -> tuple[Exchange, ...]:
        """A whole conversation for training, each turn tokenised as it will be asked.

        Raises:
            DataError: as `tokenize` does, and if the chat template does not allow it.
        """
        for medium in prompt.media:
            self._check_reads(medium.modality)
        return tokenize_dialogue(prompt, self.tokenizer)

    def length(self, sample: Pieces) -> int:
        """Tokens of a prompt as the LLM sees it: text and modality tokens."""
        return sum(map(len, sample.texts)) + sum(self.metadata[medium.modality]["projector"]["arguments"]["tokens"] for medium in sample.media)

    def check_fits(self, lengths: Sequence[int], more: int) -> None:
        """Raises DataError if prompts of these lengths, and answers of `more` tokens, are longer than the LLM's context."""
        limit = getattr(self.llm.config, "max_position_embeddings", None)
        longest = max(lengths)
        if limit is not None and longest + more > limit:
            raise DataError(f"the prompt has {longest} tokens, with an answer of up to {more} more than the {limit} that the model can read; "
                            "shorten the text, give fewer files, or lower max_new_tokens")

    def target_ids(self, target: str) -> list[int]:
        """Token ids of an answer, the end of turn included."""
        return list(answer_ids(target, self.tokenizer))

    def token_losses(self, samples: Sequence[Pieces], targets: Sequence[Sequence[int]]) -> TokenLosses:
        """Negative log-likelihood of each target token given its prompt: `dialogue_losses` of single turns."""
        return self.dialogue_losses([(Exchange(sample, tuple(target)),) for sample, target in zip(samples, targets, strict=True)])

    def dialogue_losses(self, dialogues: Sequence[Sequence[Exchange]]) -> TokenLosses:
        """Negative log-likelihood of each answer token of each turn given all before it."""
        return TokenLosses(self(dialogues), [sum(len(turn.answer) for turn in dialogue) for dialogue in dialogues])

    def forward(self, dialogues: Sequence[Sequence[Exchange]]) -> Tensor:
        """`dialogue_losses` as one tensor (target tokens of the whole batch,), float32; logits are made for these positions only.

        Sequences are padded on the right, where causal attention never looks, so padding cannot change a loss. What all of them begin with
        goes through the LLM once.
        """
        shared = self._shared_prefix([dialogue[0].prompt for dialogue in dialogues])
        rows, answered = self._embed_dialogues(dialogues, len(shared))
        batch = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        positions = torch.arange(len(shared), len(shared) + batch.shape[1], device=batch.device).expand(len(rows), -1)
        cache = self._prefixes.get(shared, len(rows)) if shared else None
        hidden = self.llm.base_model(
            inputs_embeds=batch, position_ids=positions, past_key_values=cache, use_cache=cache is not None).last_hidden_state
        supervised = torch.cat([hidden[i, start - 1 : end - 1] for i, spans in enumerate(answered) for start, end in spans])
        logits = self.llm.get_output_embeddings()(supervised).float()
        wanted = torch.tensor([token for dialogue in dialogues for turn in dialogue for token in turn.answer], device=logits.device)
        return functional.cross_entropy(logits, wanted, reduction="none")

    def _embed_dialogues(self, dialogues: Sequence[Sequence[Exchange]], skip: int) -> tuple[list[Tensor], list[list[tuple[int, int]]]]:
        """Each dialogue as embeddings (tokens, LLM dim) without its first `skip` tokens, and where its answers stand in it.

        The very last token of a dialogue is predicted only, so it is not among the embeddings.
        """
        prompts = iter(self._embed_prompts([turn.prompt for dialogue in dialogues for turn in dialogue],
                                           [0 if place else skip for dialogue in dialogues for place in range(len(dialogue))]))
        rows: list[Tensor] = []
        answered: list[list[tuple[int, int]]] = []
        for dialogue in dialogues:
            parts: list[Tensor] = []
            spans: list[tuple[int, int]] = []
            length = 0
            for turn in dialogue:
                prompt, answer = next(prompts), self._embed(turn.answer)
                start = length + len(prompt)
                length = start + len(answer)
                parts += [prompt, answer]
                spans.append((start, length))
            rows.append(torch.cat(parts)[:-1])
            answered.append(spans)
        return rows, answered

    def score(self, prompts: Sequence[Prompt], targets: Sequence[str], *, batch_size: int, progress: str | None = None) -> list[tuple[float, int]]:
        """Summed negative log-likelihood (nats, end of turn included) and number of tokens of each target given its prompt."""
        found = dict(pair for batch in self.losses(prompts, targets, batch_size=batch_size, progress=progress) for pair in batch)
        return [found[i] for i in range(len(prompts))]

    @torch.no_grad()
    def losses(self, prompts: Sequence[Prompt], targets: Sequence[str], *, batch_size: int, progress: str | None = None
               ) -> Iterator[list[tuple[int, tuple[float, int]]]]:
        """What `score` returns, batch by batch as it is computed, longest first: (place of the prompt, (nats, tokens)).

        Without the prompts of the first batches, the others come in the same batches as with them.
        """
        samples, ids = [self.tokenize(prompt) for prompt in prompts], [self.target_ids(target) for target in targets]
        lengths = [self.length(s) + len(t) for s, t in zip(samples, ids, strict=True)]
        self.check_fits(lengths, 0)
        for rows in self._batches(lengths, batch_size, progress):
            losses = self.token_losses([samples[i] for i in rows], [ids[i] for i in rows])
            found = [(i, (float(part.double().sum()), len(part))) for i, part in zip(rows, losses.values.split(losses.lengths), strict=True)]
            if not all(math.isfinite(nats) for _, (nats, _) in found):
                raise NumericalError("scoring gave a value that is not finite; the projector's weights are damaged or the dtype is too narrow")
            yield found

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int, progress: str | None = None) -> list[str]:
        """Greedy answers, without the end of turn and stripped of surrounding white space."""
        return [said.text for said in self.complete(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)]

    def complete(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int, progress: str | None = None) -> list[Completion]:
        """Greedy answers, each with how it ended."""
        batches = self.completions(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
        found = dict(pair for batch in batches for pair in batch)
        return [found[i] for i in range(len(prompts))]

    @torch.no_grad()
    def completions(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int, progress: str | None = None
                    ) -> Iterator[list[tuple[int, Completion]]]:
        """What `complete` returns, batch by batch as it is generated, longest prompts first: (place of the prompt, completion).

        Without the prompts of the first batches, the others come in the same batches as with them.
        """
        samples = [self.tokenize(prompt) for prompt in prompts]
        lengths = [self.length(s) for s in samples]
        self.check_fits(lengths, max_new_tokens)
        for rows in self._batches(lengths, batch_size, progress):
            yield list(zip(rows, self._generate([samples[i] for i in rows], max_new_tokens), strict=True))

    def _generate(self, samples: Sequence[Pieces], max_new_tokens: int) -> list[Completion]:
        """Completions of one batch; what all prompts begin with goes through the LLM once, the padding follows it."""
        shared = self._shared_prefix(samples)
        rows = self._embed_prompts(samples, [len(shared)] * len(samples))
        longest = max(map(len, rows))
        prefix = self._embed(shared)
        batch = torch.stack([torch.cat([prefix, functional.pad(row, (0, 0, longest - len(row), 0))]) for row in rows])
        places = torch.arange(len(shared) + longest, device=batch.device)
        mask = torch.stack([((places < len(shared)) | (places >= len(places) - len(row))).long() for row in rows])
        cache = self._prefixes.get(shared, len(rows)) if shared else None
        out = self.llm.generate(inputs_embeds=batch, attention_mask=mask, past_key_values=cache, max_new_tokens=max_new_tokens, do_sample=False,
                                eos_token_id=self.end_of_turn, pad_token_id=self.end_of_turn)
        ended = (out == self.end_of_turn).any(dim=1).tolist()
        texts = self.tokenizer.batch_decode(out, skip_special_tokens=True)
        return [Completion(text.strip(), "stop" if stopped else "length") for text, stopped in zip(texts, ended, strict=True)]

    def _batches(self, lengths: Sequence[int], batch_size: int, progress: str | None) -> Any:
        """Rows in batches of like length, longest first (so that memory peaks at once)."""
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        with track(total=len(order), label=progress or "", unit="samples") if progress else _NoBar() as bar:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                yield rows
                bar.update(len(rows))

    def _shared_prefix(self, samples: Sequence[Pieces]) -> tuple[int, ...]:
        """The tokens that all prompts begin with, before their first medium; at least one token is left to each."""
        if not self.shares_prefixes:
            return ()
        starts = [sample.texts[0] if sample.media else sample.texts[0][:-1] for sample in samples]
        shortest = min(starts, key=len)
        for place, token in enumerate(shortest):
            if any(start[place] != token for start in starts):
                return shortest[:place]
        return shortest

    def _embed(self, ids: Sequence[int]) -> Tensor:
        tokens = torch.tensor(list(ids), dtype=torch.long, device=self.llm.device)
        embedded: Tensor = self.llm.get_input_embeddings()(tokens)
        return embedded

    def _embed_prompts(self, samples: Sequence[Pieces], skip: Sequence[int]) -> list[Tensor]:
        """Each prompt as embeddings (tokens, LLM dim), the first `skip` tokens of each left out; media are projected a modality at a time."""
        projected = self.project(samples)
        rows = []
        for sample, media, left_out in zip(samples, projected, skip, strict=True):
            parts = [self._embed(sample.texts[0][left_out:])]
            for tokens, text in zip(media, sample.texts[1:], strict=True):
                parts += [tokens, self._embed(text)]
            rows.append(torch.cat(parts))
        return rows

    def embed_prompts(self, samples: Sequence[Pieces]) -> list[Tensor]:
        """Each prompt as the LLM sees it: text and modality tokens, (tokens, LLM dim)."""
        return self._embed_prompts(samples, [0] * len(samples))

    def embed_tokens(self, ids: Sequence[int]) -> Tensor:
        """Tokens of text as embeddings (tokens, LLM dim)."""
        return self._embed(ids)

    def project(self, samples: Sequence[Pieces]) -> list[list[Tensor]]:
        """The modality tokens of each sample's media, each (tokens, LLM dim); each projector runs once."""
        places: dict[str, list[tuple[int, int]]] = {}
        for i, sample in enumerate(samples):
            for j, medium in enumerate(sample.media):
                places.setdefault(medium.modality, []).append((i, j))
        out: list[list[Tensor]] = [[torch.empty(0)] * len(sample.media) for sample in samples]
        for modality, spots in places.items():
            projector = self.projectors[modality]
            weights = next(projector.parameters())
            features = torch.stack([samples[i].media[j].features for i, j in spots]).to(weights.device, weights.dtype)
            for (i, j), tokens in zip(spots, projector(features).to(self.llm.get_input_embeddings().weight.dtype), strict=True):
                out[i][j] = tokens
        return out


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def embedding_scale(llm: Any) -> float:
    """Root mean square of the LLM's token embeddings: the scale that its first layer expects of modality tokens."""
    return float(llm.get_input_embeddings().weight.float().pow(2).mean().sqrt())


def write_checkpoint(folder: Path, projector: nn.Module, metadata: Mapping[str, Any], trained_encoder: Path | None) -> None:
    """Write a projector with what `metadata` says of it, and its encoder's own folder, if no asset holds the encoder.

    `metadata` holds `modality`, `llm`, `encoder`, `introduction`, `templates` and `projector` (kind and arguments).
    """
    save_tensors(folder / WEIGHTS, projector.state_dict())
    (folder / METADATA).write_text(json.dumps(metadata, indent=1, sort_keys=True) + "\n")
    if trained_encoder is not None:
        shutil.copytree(trained_encoder, folder / TRAINED_ENCODER, dirs_exist_ok=True, copy_function=shutil.copyfile)
    write_manifest(folder)


def read_templates(described: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Template]]:
    """Modality -> name -> template, from the metadata of checkpoints; each knows how the media of all of them are introduced."""
    entries = list(described)
    introductions = {entry["modality"]: entry["introduction"] for entry in entries}
    return {entry["modality"]: {name: Template(**template, introductions=introductions) for name, template in entry["templates"].items()}
            for entry in entries}


def load_projector(folder: Path, metadata: Mapping[str, Any]) -> nn.Module:
    """Build the projector that a checkpoint describes and load all its weights; a missing or extra tensor is refused."""
    from safetensors.torch import load_file

    try:
        projector = build_projector(metadata["projector"]["kind"], metadata["projector"]["arguments"])
    except (KeyError, TypeError) as error:
        raise BundleError(f"{folder / METADATA}: describes no projector that this version builds ({error}); run align again") from error
    try:
        projector.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except RuntimeError as error:
        raise BundleError(f"{folder / WEIGHTS}: does not fit the projector that {METADATA} describes: {error}") from error
    return projector.eval().requires_grad_(False)


def load_anymal(assets: Path | Mapping[str, Path], checkpoints: Sequence[Path], *, dtype: str = "bfloat16", quantization: str = "none",
                attention: str = "eager", merge: bool = False) -> AnyMAL:
    """Assemble a model for inference from checkpoints, one per modality, or from what finetune wrote.

    Args:
        assets: the folder that holds one folder per asset name, or asset name -> folder.
        checkpoints: folders that align wrote, or one that finetune wrote; all must name the same LLM.
        dtype: of the LLM. Generation may use another precision than training did (paper section 3.1).
        merge: add the LLM's adapter into its weights: faster, rounded to their precision.

    Raises:
        BundleError: if a checkpoint is damaged, two disagree, or the adapter that they were tuned with is missing.
    """
    found = read_checkpoints(checkpoints)

    def asset(name: str) -> Path:
        return assets / name if isinstance(assets, Path) else assets[name]

    llm, tokenizer = load_llm(asset(found.llm), dtype=dtype, quantization=quantization, attention=attention)
    if found.adapter is not None:
        load_adapter(llm, found.adapter)
        if merge:
            merge_adapter(llm)
    encoders = {modality: found.folders[modality] / TRAINED_ENCODER if entry["encoder"]["asset"] is None else asset(entry["encoder"]["asset"])
                for modality, entry in found.metadata.items()}
    return AnyMAL(
        llm, tokenizer, {modality: load_projector(found.folders[modality], entry).to(llm.device) for modality, entry in found.metadata.items()},
        templates=read_templates(found.metadata.values()), metadata=found.metadata, encoder_folders=encoders)
