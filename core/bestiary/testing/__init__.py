'''What an author of a plugin tests it with: for each kind a contract, a class of tests to subclass.

```python
# test_gecko.py; needs pytest: pip install "bestiary[testing]"
from bestiary.testing import ArchitectureContract
from gecko import Gecko


class TestGecko(ArchitectureContract):
    architecture = Gecko()
```

The item may also come from a pytest fixture of that name, with params for several. A method of the contract that is
overridden changes what is tried; a test that is overridden is the author's own.

| contract | item | may be given besides |
|---|---|---|
| ArchitectureContract | architecture | `configs`: further configs; `backends`: names; `bound`; `ids()`, `tokenizer()` |
| LoaderContract | loader | needed: `sample(folder)`, which writes a small file there; `writer`, `header`, `damages` |
| WriterContract | writer | `reader`: the loader of what it writes; `read_back()` |
| QuantizerContract | quantizer | `bound`: the largest error of a weight, as a share of the largest in its block |
| BackendContract | backend | `bound`, `quantized_bound`: shares of the logits' spread; `exact`: the same to the bit |

An item is tested in a Host of what is installed and of itself, so it need not be installed; `host` is a fixture that
may be overridden. The built-in plugins are tested by the same contracts. `damage` and `children` are what the contract
of loaders uses: seeded damage to a file, and cases run in children with little memory.
'''

from bestiary.testing.architecture import ArchitectureContract
from bestiary.testing.backend import BackendContract
from bestiary.testing.contract import Broken, Contract, HostWith, expect
from bestiary.testing.loader import LoaderContract
from bestiary.testing.quantizer import QuantizerContract
from bestiary.testing.writer import WriterContract

__all__ = ["ArchitectureContract", "BackendContract", "Broken", "Contract", "HostWith", "LoaderContract",
           "QuantizerContract", "WriterContract", "expect"]
