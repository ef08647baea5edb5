"""Chat prompts are the tokenizer's own, and a tokenizer without a template says so in one line."""

from pathlib import Path

import pytest

from tests.tiny_models import byte_tokenizer
from treeopo.engines.tokenizer import ModelTokenizer
from treeopo.errors import ModelError

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_ends_where_the_assistant_begins(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    chat = ModelTokenizer(str(tmp_path))
    assert chat.decode(chat.chat([{"role": "user", "content": "2 + 2?"}])) == "[user]2 + 2?[assistant]"


def test_a_tokenizer_without_a_chat_template_is_one_clear_line(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"chat prompts: .*use prompt\.style plain") as error:
        ModelTokenizer(str(tmp_path)).chat([{"role": "user", "content": "2 + 2?"}])
    assert "\n" not in str(error.value)
