"""The kernel of each operation on this machine: decided once, kept, read, set. The package zoo calls it `zoo.kernels`.

    zoo.kernels.choices()       the kernels of this process by operation and dtype
    zoo.kernels.use("plain")    torch's own calls from here on; a FILE, or kernels by operation
    python -m zoo.kernels       decides all, and shows them

A forward pass decides nothing.
"""

from zoo.core.kernels import active as active
from zoo.core.kernels import choices as choices
from zoo.core.kernels import save as save
from zoo.core.kernels import use as use
from zoo.core.kernels import using as using
from zoo.kernel_choice.deciding import decide as decide
from zoo.kernel_choice.deciding import decide_for as decide_for
