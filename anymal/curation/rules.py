"""The reasons for which a sample may be left out, each with the sentence that the report shows."""

from __future__ import annotations

from anymal.curation import screening

REASONS: dict[str, str] = {
    "excluded_by_profile": "its path matches one of the source's exclude patterns",
    "unreadable": "the file or archive member cannot be read, or leaves its folder",
    "duplicate_key": "another file of the same name was taken before it",
    "empty_file": "the file holds no byte",
    "file_too_large": "the file holds more bytes than allowed",
    "not_an_image": "the content is no image of a known format, whatever its name says",
    "unsafe_svg": "the drawing refers to something outside its file",
    "too_many_pixels": "the header announces more pixels than allowed; it was not decoded",
    "too_small": "a side is shorter than allowed",
    "no_caption": "nothing is said of the picture",
    "caption_too_long": "the caption is longer than allowed",
    "caption_too_short": "the cleaned caption is shorter than allowed",
    "not_english": "the caption is in another language, or its words are not known",
    "not_a_description": "the caption is an order, a remark or a name, and does not say what is seen",
    "too_few_relations": "CAT: the parsed caption has fewer relations on an object than asked for",
    "too_few_actions": "CAT: the parsed caption has fewer actions than asked for",
    "truncated_image": "the file ends before the picture does",
    "blank_image": "the picture is one even area",
    "text_in_image": "CAT: text read from the picture is repeated in the caption",
    "exact_duplicate": "the same pixels were kept under another key",
    "near_duplicate": "a picture that looks alike was kept under another key",
    **screening.REASONS,
}
"""In the order in which the rules are applied."""
