"""Chat templates that behave like those of models that coding agents meet: what they refuse, drop, print and switch.

Short, and written for tests: the markup and the rules are those of the models, the words are not.
"""

from __future__ import annotations

from tests.support.chat_template import CHATML, LLAMA_3, MISTRAL

# Raises on a system message that is not the first, on a chat without a question, and on effort words that it does not
# know; without one it takes the highest. Thoughts of earlier questions are dropped.
QWEN = """{%- if not messages %}{{- raise_exception('No messages provided.') }}{%- endif %}
{%- set effort = '' %}
{%- if reasoning_effort is defined and reasoning_effort not in ['xhigh', 'medium', 'low'] %}
    {{- raise_exception('Unexpected reasoning effort ' ~ reasoning_effort) }}
{%- elif reasoning_effort is defined and reasoning_effort == 'low' %}{%- set effort = 'Think briefly.\n\n' %}
{%- elif reasoning_effort is not defined or reasoning_effort == 'xhigh' %}{%- set effort = 'Think carefully.\n\n' %}
{%- endif %}
{%- set instructions = messages[0].content | trim if messages[0].role == 'system' else '' %}
{%- if tools %}
    {{- '<|im_start|>system\n' + effort + '# Tools\n\n<tools>' }}
    {%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
    {{- '\n</tools>\n\nA call:\n<tool_call>\n<function=NAME>\n<parameter=NAME>\nVALUE' }}
    {{- '\n</parameter>\n</function>\n</tool_call>' }}
    {{- ('\n\n' + instructions if instructions else '') + '<|im_end|>\n' }}
{%- elif instructions or effort %}
    {{- '<|im_start|>system\n' + (effort + instructions) | trim + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(question=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- if ns.question < 0 %}{{- raise_exception('No user query found in messages.') }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}{{- raise_exception('System message must be at the beginning.') }}{%- endif %}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>user\n' + message.content | trim + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.question %}
            {{- '<think>\n' + message.reasoning_content | default('') | trim + '\n</think>\n\n' }}
        {%- endif %}
        {{- message.content | trim }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n\n' if loop.first and message.content | trim else ('' if loop.first else '\n') }}
            {{- '<tool_call>\n<function=' + call.function.name + '>\n' }}
            {%- for name, value in call.function.arguments | items %}
                {%- set text = value if value is string else value | tojson %}
                {{- '<parameter=' + name + '>\n' + text + '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem is undefined or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- else %}
        {{- raise_exception('Unexpected message role.') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {{- '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false else '<think>\n' }}
{%- endif %}"""

# Prints any effort word, and says nothing of a system message that is not the first.
GPT_OSS = """{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}
{{- '<|start|>system<|message|>You are ChatGPT.\n\nReasoning: ' + reasoning_effort }}
{{- '\n\n# Valid channels: analysis, commentary, final.' }}
{{- ('\nCalls to these tools must go to the commentary channel: functions.' if tools else '') + '<|end|>' }}
{%- set has_instructions = messages[0].role in ['developer', 'system'] %}
{%- if has_instructions or tools %}
    {{- '<|start|>developer<|message|>' }}
    {{- '# Instructions\n\n' + messages[0].content + '\n\n' if has_instructions }}
    {%- if tools %}
        {{- '# Tools\n\n## functions\n\nnamespace functions {\n\n' }}
        {%- for tool in tools %}
            {{- '// ' + tool.function.description | default('') + '\ntype ' + tool.function.name + ' = (_: ' }}
            {{- tool.function.parameters | default({}) | tojson + ') => any;\n\n' }}
        {%- endfor %}
        {{- '} // namespace functions' }}
    {%- endif %}
    {{- '<|end|>' }}
{%- endif %}
{%- set ns = namespace(called=none) %}
{%- for message in (messages[1:] if has_instructions else messages) %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}
        {%- set ns.called = call.name %}
        {%- set thoughts = message.thinking or message.content %}
        {{- '<|start|>assistant<|channel|>analysis<|message|>' + thoughts + '<|end|>' if thoughts }}
        {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
        {{- call.arguments | tojson + '<|call|>' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
        {%- set ns.called = none %}
    {%- elif message.role == 'tool' %}
        {{- raise_exception('Message has tool role, but there was no tool call!') if ns.called is none }}
        {{- '<|start|>functions.' + ns.called + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content | tojson + '<|end|>' }}
    {%- elif message.role == 'user' %}
        {{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{{- '<|start|>assistant' if add_generation_prompt }}"""

# Has no system role, and takes user and assistant in turn only.
GEMMA = """{{- bos_token | default('') }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {{- message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{{- '<start_of_turn>model\n' if add_generation_prompt }}"""

# Moves all system messages to the front, and thinks only where `thinking` says so.
DEEPSEEK = """{%- set thinking = thinking is defined and thinking %}
{%- set ns = namespace(instructions='') %}
{%- for message in messages if message.role == 'system' %}
    {%- set ns.instructions = ns.instructions + ('\n\n' if ns.instructions else '') + message.content %}
{%- endfor %}
{{- (bos_token | default('')) + ns.instructions }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|User|>' + message.content }}
    {%- elif message.role == 'assistant' %}
        {{- '<|Assistant|></think>' + message.content + '<|end|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|tool|>' + message.content + '<|/tool|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|>' + ('<think>' if thinking else '</think>') }}{%- endif %}"""

# By what it behaves like. "plain" has no format of calls and nothing to switch; all other roles go as they come.
TEMPLATES = {
    "qwen": QWEN,
    "gpt-oss": GPT_OSS,
    "llama": LLAMA_3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK,
    "plain": CHATML,
}
