"""A text of many kinds: prose, numbers, code, several languages."""

SAMPLE_TEXT = """\
The router of a mixture of experts sends every token to a few of many feed-forward networks. Which network bears which
number is an accident of training: exchange two experts together with their rows in the router, and nothing changes.
In 1905, Albert Einstein published four papers; the fourth contained E = mc^2. "Why?" she asked. "Because 7 * 8 = 56."

def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

Der Wind hat sich gedreht, und am Abend begann es zu regnen. El tren sale a las ocho y media de la mañana.
今天天气很好。
SELECT name, COUNT(*) FROM visits WHERE year >= 2020 GROUP BY name ORDER BY 2 DESC; <p class="note">Done.</p>
"""
