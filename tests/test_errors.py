from hf_moe_lmc.errors import LONGEST_LINE, BadInputError, one_line


def test_nothing_that_steers_a_terminal_is_printed():
    hostile = "a\x1b[2J\x1b]0;title\x07b\u202ec\ud800\r\nd\u2028e"
    assert one_line(hostile) == r"a\x1b[2J\x1b]0;title\x07b\u202ec\ud800 d e"
    assert str(BadInputError(hostile)) == one_line(hostile)
    assert one_line(one_line(hostile)) == one_line(hostile)


def test_other_scripts_are_printed_as_they_are():
    assert one_line("Größe 模型 مزيج") == "Größe 模型 مزيج"


def test_a_line_is_bounded_and_keeps_its_ends():
    line = str(BadInputError("file.txt: " + "x" * 10**6 + "; move it away"))
    assert len(line) < LONGEST_LINE + 10
    assert line.startswith("file.txt: xxx")
    assert line.endswith("xxx; move it away")
