import pytest

from hf_moe_lmc.hub.markdown import Markdown, escape, shell_command


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("| evil <script> {{x}}", r"\| evil &lt;script&gt; \{\{x\}\}"),
        ("a\n---\n# b", "a --- # b"),
        ("[a](http://b) ![c] `d` **e** $f$ ~g~", r"\[a\](http://b) \!\[c\] \`d\` \*\*e\*\* \$f\$ \~g\~"),
        ("a\x00b\u2028c & d", r"a\\x00b c &amp; d"),
        (3, "3"),
        (Markdown("**kept**"), "**kept**"),
    ],
)
def test_a_value_is_text_and_nothing_else(text, escaped):
    assert escape(text) == escaped


def test_commands_are_quoted_and_of_one_line():
    assert shell_command(["merge", "a b\n```", "$(rm)"]) == "merge 'a b ```' '$(rm)'"
