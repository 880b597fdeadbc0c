import pytest

from hf_moe_lmc.hub.markdown import Markdown, escape, replace_sections, shell_command


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


OLD = "# T\n\nTop.\n\n## B\n\nold\n\n## Mine\n\n```\n## A\n```\n\n## D\n\nend\n"
NEW = "# N\n\n## A\n\na\n\n## B\n\nb\n\n## C\n\nc\n\n## D\n\nd\n"


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("B", OLD.replace("old", "b")),
        ("A", OLD.replace("## B", "## A\n\na\n\n## B")),
        ("C", OLD.replace("## D", "## C\n\nc\n\n## D")),
        ("X", OLD),
    ],
)
def test_sections_are_replaced_or_come_where_they_belong(heading, expected):
    assert replace_sections(OLD, NEW, [heading], ["A", "B", "C", "D", "X"]) == expected


def test_a_section_without_any_after_it_comes_last():
    assert replace_sections("# T\n", NEW, ["D"], ["C", "D"]) == "# T\n\n## D\n\nd\n"
