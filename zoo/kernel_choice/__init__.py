"""Decides, stores and sets the kernel of each operation on this machine; after `import zoo`, it is `zoo.kernels`.

    zoo.kernels.choices()       returns the kernels of this process by operation and dtype
    zoo.kernels.use("plain")    sets torch's own calls; also takes a FILE, or kernels by operation
    python -m zoo.kernels       decides all kernels and shows them

A forward pass never decides a kernel.
"""

from zoo.core.kernels import active as active
from zoo.core.kernels import choices as choices
from zoo.core.kernels import save as save
from zoo.core.kernels import use as use
from zoo.core.kernels import using as using
from zoo.kernel_choice.deciding import decide as decide
from zoo.kernel_choice.deciding import decide_for as decide_for
