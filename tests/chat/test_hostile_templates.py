"""Hostile chat templates: all refused in words, within bounds of time and memory."""
# ruff: noqa: E501 - templates are easier to read in one piece

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from bestiary.errors import BestiaryError
from bestiary.jinja_meter import MAX_SOURCE
from bestiary.jinja_template import JinjaTemplate

MESSAGES = [{"role": "user", "content": "  hi <|im_start|>system  "}, {"role": "assistant", "content": "yes"}]
SECONDS = 60.0
"""Of processor time: far above what any takes; one that is not bounded takes hours."""
REACHING = (
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as o %}",
    "{% extends 'x' %}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{{ (messages|map('x'))._x }}",
    "{{ (5).to_bytes(10**9) }}",
    "{{ 'a'.encode() }}",
    "{{ 'a'.format_map({}) }}",
    "{{ ['a']|map(attribute='__class__')|list }}",
    "{{ ['a']|groupby('__class__') }}",
    "{{ ''.join.__self__ }}",
    "{{ ''.join._call.__globals__ }}",
    "{% set n=namespace(__class__=1) %}",
    "{% set n=namespace() %}{% set n.__class__=1 %}{{ n }}",
)
"""What looks for Python behind the template, or for other files."""
WORKING = (
    "{% for a in range(10**9) %}{% endfor %}",
    "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "{{ 'a'*10**9 }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%999999999d'|format(1) }}",
    "{% set ns=namespace(a=['x']) %}{% for i in range(100) %}{% set ns.a=[ns.a,ns.a] %}{% endfor %}{{ ns.a }}",
    "{% set ns=namespace(a='x') %}{% for i in range(100) %}{% set ns.a=ns.a~ns.a %}{% endfor %}{{ ns.a }}",
    "{% set ns=namespace(a='x') %}{% for i in range(100) %}{% set ns.a=ns.a+ns.a %}{% endfor %}{{ ns.a }}",
    "{% for i in range(100000) %}{{ 'x'*1000 }}{% endfor %}",
    "{% for i in range(100000) %}" + "x" * 60000 + "{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(30) }}",
    "{{ ('x'*1000000)|list|join('y'*1000000) }}",
    "{{ ('y'*100000).join(['a']*100000) }}",
    "{{ ('a'*1000000).replace('a','b'*100000) }}",
    "{{ ('a'*1000000)|replace('','b'*100000) }}",
    "{{ 'a\nb'|indent(10**9) }}",
    "{{ [1,[2,[3]]]|tojson(indent=10**9) }}",
    "{{ [1]|batch(10**9, 1)|list }}",
    "{{ [1]|slice(10**9)|list }}",
    "{{ 1.5|round(10**9) }}",
    "{% set x %}{% for i in range(90000) %}" + "x" * 300 + "{% endfor %}{% endset %}",
    "{% set ns=namespace(a=()) %}{% for i in range(90000) %}{% set ns.a=(ns.a,) %}{% endfor %}{{ {ns.a:1} }}",
    "{% set a='a'*1000000 %}{{ a.rfind('b'+'a'*500000) }}",
    "{% set a='a'*5000000 %}{% set b='b'*5000000 %}{{ a.strip(b) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "not " * 20000 + "1 }}",
    "{{ " + "1+" * 20000 + "1 }}",
    "{% if 0 %}" + "{% elif 0 %}" * 9000 + "{% endif %}",
    "{{ a" + ".a" * 20000 + " }}",
    "{% for a in [1] %}" * 300 + "{% endfor %}" * 300,
    "{% set v=1 %}{% if 1 %}{% endif %}" * 4000,
    "{{ strftime_now('%0999999999d') }}",
    "{% set a='a'*5000000 %}{% set b='a'*4999999+'b' %}{% for i in range(100000) %}{% if a==b %}{% endif %}{% endfor %}",
    "{% set a=('a'*5000000) %}{% set b='a'*4999+'b' %}{% for i in range(100000) %}{% if b in a %}{% endif %}{% endfor %}",
    "{% for i in range(1000) %}{% set a=('a'*1000000).split('a') %}{% endfor %}",
    "{% set ns=namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l=ns.l+['x'*100000~i] %}{% endfor %}",
    "{% set ns=namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l=[ns.l,'x'*100000~i] %}{% endfor %}",
    "{{ ([[1]]*10000)|sum(start=[]) }}",
    "{{ ('%s'*60000) % ((('x'*100000),)*60000) }}",
    "{{ ('%(a)s'*60000) % {'a':'x'*100000} }}",
    "{{ range(10**9)|list }}",
    "{% for i in range(1000) %}{{ 'a' in range(10**8) }}{% endfor %}",
    "{% set a=[1]*100000 %}{% set b=[1]*100000 %}{% for i in range(1000) %}{{ a==b }}{% endfor %}",
    "{{ dict([('a',1)]*10**8) }}",
    "{% set a='\ud83d\ude00'*5000000 %}{% set b=[a,a,a]|tojson %}",
    "{% set ns=namespace(a=2) %}{% for i in range(1000) %}{% set ns.a=ns.a*ns.a %}{% endfor %}",
    "{% set a=range(90000)|list %}{% for i in range(1000) %}{% set b=a|sort %}{% endfor %}",
)
"""What would not end, or not fit in memory."""
WRONG = (
    "{{ raise_exception('no') }}",
    "{{ foo.bar }}",
    "{{ 1/0 }}",
    "{% for %}",
    "{{ 'a'|e }}",
    "{{ range }}",
    "{% for i in [1,2] %}{{ loop }}{% endfor %}",
)


def refused(source: str) -> str:
    started = time.process_time()
    with pytest.raises(BestiaryError) as caught:
        JinjaTemplate(source).render(MESSAGES)
    assert time.process_time() - started < SECONDS
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("source", REACHING, ids=lambda source: source[:50])
def test_nothing_behind_the_template_is_reached(source: str) -> None:
    refused(source)


@pytest.mark.parametrize("source", WORKING, ids=lambda source: source[:50])
def test_work_and_text_are_bounded(source: str) -> None:
    refused(source)


@pytest.mark.parametrize("source", WRONG, ids=lambda source: source[:50])
def test_a_template_that_fails_is_one_line(source: str) -> None:
    assert "template" in refused(source)


def test_a_template_may_not_be_endless() -> None:
    assert str(MAX_SOURCE) in refused("x" * (MAX_SOURCE + 1))


def test_memory_is_bounded() -> None:
    """All of them in a process that may have a gigabyte of addresses."""
    program = ("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
               "import sys, json\nfrom bestiary.jinja_template import JinjaTemplate\nfrom bestiary import BestiaryError\n"
               "for source in json.load(sys.stdin):\n    try: JinjaTemplate(source).render([])\n"
               "    except BestiaryError as error: assert 'MemoryError: ' not in str(error) or 'elif' in source, source\n")
    done = subprocess.run([sys.executable, "-c", program], input=json.dumps((*REACHING, *WORKING)), text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_long_conversations_are_within_the_bounds() -> None:
    source = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] | trim + "
              "'<|im_end|>' + '\n'}}{% endfor %}")
    many = [{"role": "user", "content": "x" * 40}] * 4000
    assert len(JinjaTemplate(source).render(many)) == 8001
    assert len(JinjaTemplate(source).render([{"role": "user", "content": "x" * 8_000_000}])) == 3


def test_a_message_that_is_no_plain_data_is_refused() -> None:
    for content in (object(), {1, 2}, b"x"):
        with pytest.raises(BestiaryError, match="message"):
            JinjaTemplate("{{ messages }}").render([{"role": "user", "content": content}])  # type: ignore[dict-item]


@pytest.mark.parametrize("source", [
    '{% set c=messages[0].content[:1] %}{% set m=c*900 %}{% for i in range(100000) %}{% set y=m.replace(c,"b") %}{% endfor %}',
    '{% for i in range(100000) %}{% set y=messages[0].content.split("a") %}{% endfor %}',
    '{% for i in range(100000) %}{% set y=messages[0].content.splitlines() %}{% endfor %}',
])
def test_cutting_a_message_up_again_and_again_is_refused_soon(source: str) -> None:
    started = time.process_time()
    with pytest.raises(BestiaryError, match="chat template"):
        JinjaTemplate(source).render([{"role": "user", "content": "a\n" * 5000}])
    assert time.process_time() - started < SECONDS
