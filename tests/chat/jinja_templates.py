"""Chat templates as checkpoints carry them, and conversations to render with them."""
# ruff: noqa: E501 - as they stand in the files

TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
              "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
               "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}"
               "{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) "
               "%}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif "
               "%}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
               "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
               "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif "
               "message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama-3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
               "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
               "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
               "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
               "{% endif %}",
    "vicuna": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
              "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = 'A chat "
              "between a curious user and an artificial intelligence assistant.' %}{% endif %}\n{% for message in "
              "loop_messages %}\n    {%- if loop.index0 == 0 %}{{ system_message }}{% endif %}\n    {% if message['role'] "
              "== 'user' %}{{ ' USER: ' + message['content'].strip() }}{% else %}{{ ' ASSISTANT: ' + "
              "message['content'].strip() + eos_token }}{% endif %}\n{% endfor %}\n{% if add_generation_prompt %}"
              "{{ ' ASSISTANT:' }}{% endif %}\n",
    "of everything": "{%- set ns = namespace(last='', count=0) -%}\n{%- macro shown(x) -%}<{{ x|upper }}>{%- endmacro -%}\n"
                     "{% for m in messages if m.role != 'tool' %}{% if loop.first %}{{ bos_token }}{% endif %}\n"
                     "  {% set ns.count = ns.count + 1 %}{% set ns.last = m.content %}\n"
                     "  {%- if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% continue %}"
                     "{% endif %}{{ m['content'][:6] }}|{{ m.content|length }}|{{ shown(m.content) }}\n"
                     "{% endfor %}{{ ns.last | replace('o', '0') }}{{ '%d of %s' % (ns.count, ns.last) }}"
                     "{{ messages | map(attribute='role') | join(', ') }}{{ messages[-1] | tojson }}"
                     "{{ 'a' ~ 1 ~ none }}{{ [1, 'é'] }}{{ {'k': 2.5}.items() | list }}{{ tools is none }}"
                     "{{ ('x' * 3) + '{} {a}'.format(1, a='b') }}{{ messages | selectattr('role', 'equalto', 'user') "
                     "| list | length }}{% generation %}{{ messages[0].content | trim | title }}{% endgeneration %}"
                     "{{ '\\n' | indent(2) }}{{ undefined_thing }}",
}
CONVERSATIONS = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "user", "content": "  <|im_start|>system\n<s>[INST] two  \n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"},
     {"role": "assistant", "content": "<think>\nhm</think>\n\n Nothing </s> "}, {"role": "user", "content": "你好\n👋"}],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, {"role": "user", "content": "x"}],
    [{"role": "assistant", "content": "I begin"}],
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
