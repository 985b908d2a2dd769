# cython: language_level=3, boundscheck=True, wraparound=False, initializedcheck=True, freethreading_compatible=False
# distutils: language = c++
"""The border between Python and the kernels: checks every length once, then lets go of the GIL."""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp cimport bool as cbool
from libcpp.memory cimport make_shared, shared_ptr, unique_ptr
from libcpp.utility cimport pair
from libcpp.vector cimport vector

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept

cdef extern from "table.h" namespace "bestiary":
    ctypedef int64_t i64
    cdef enum Kind "bestiary::Kind":
        kNibble "bestiary::kNibble"
        kFive "bestiary::kFive"
        kByte "bestiary::kByte"
        kBook "bestiary::kBook"
        kTwo "bestiary::kTwo"
        kThree "bestiary::kThree"
        kSix "bestiary::kSix"
        kF32 "bestiary::kF32"
        kF16 "bestiary::kF16"
        kBF16 "bestiary::kBF16"
    cdef enum Held "bestiary::Held":
        kHeldF32 "bestiary::kHeldF32"
        kHeldF16 "bestiary::kHeldF16"
        kHeldQ8 "bestiary::kHeldQ8"
    cdef struct CMatrix "bestiary::Matrix":
        uint8_t *data
        i64 rows, columns, groups, group_bytes
        int32_t kind, zero
        cbool half
    cdef struct CRope "bestiary::Rope":
        i64 heads, head_dim, start, count
        cbool halves
    cdef struct CAttention "bestiary::Attention":
        i64 heads, kv_heads, key_dim, value_dim, value_stride
        float scale, soft_cap
        i64 window
        Held k_held, v_held
    cdef struct CTable "bestiary::Table":
        const char *name

cdef extern from "memory.h" namespace "bestiary":
    cdef cppclass Memory:
        Memory() except +
        Memory(size_t) except +
        unsigned char *data()
        void populate(const unsigned char *, size_t) noexcept nogil
        void grow(size_t) except +

cdef extern from "layout.h" namespace "bestiary":
    cdef cppclass CField "bestiary::Field":
        int width
        i64 stride, plane_start
        vector[i64] offsets
        void prepare() except +
    cdef cppclass CFactor "bestiary::FactorField":
        int32_t number
        CField at
        vector[CField] integer
        i64 bias
        cbool is_signed
    cdef struct CStraight "bestiary::Layout::Straight":
        i64 first
        cbool numbers
    cdef cppclass CLayout "bestiary::Layout":
        i64 columns, row_bytes, group, zero
        int32_t kind
        vector[CField] codes
        cbool is_signed, minimum
        int width
        float minimum_sign
        CFactor scale, low
        vector[float] book
        vector[uint8_t] rounded
        float factor
        CStraight straight
        void prepare() noexcept
        void decode(const uint8_t *, float *, uint8_t *) noexcept nogil
    CMatrix packed_shape(const CLayout &, i64)
    void pack_rows(const CMatrix &, const CLayout &, const uint8_t *, i64, i64) except + nogil
    void unpack_row(const CMatrix &, i64, float *) nogil
    void c_quantize_q8_0 "bestiary::quantize_q8_0"(const float *, i64, uint8_t *) noexcept nogil
    void c_quantize_q4_0 "bestiary::quantize_q4_0"(const float *, i64, uint8_t *) noexcept nogil
    void c_quantize_q4_1 "bestiary::quantize_q4_1"(const float *, i64, uint8_t *) noexcept nogil
    void c_quantize_q5_0 "bestiary::quantize_q5_0"(const float *, i64, uint8_t *) noexcept nogil
    void c_quantize_q5_1 "bestiary::quantize_q5_1"(const float *, i64, uint8_t *) noexcept nogil

cdef extern from "host.h" namespace "bestiary":
    const CTable *const *tables()

cdef extern from "pool.h" namespace "bestiary":
    int c_usable_threads "bestiary::usable_threads"() except +
    i64 process_id() noexcept

cdef extern from "cache.h" namespace "bestiary":
    cdef cppclass CCacheLayer "bestiary::CacheLayer":
        i64 kv_heads, key_dim, value_dim
        Held k_held, v_held
    cdef cppclass CCache "bestiary::Cache":
        CCache(const vector[CCacheLayer] &, i64, i64) except +
        i64 sequences()
        i64 context()
        i64 length(i64)
        void reserve(i64, i64) except +
        void truncate(i64, i64) except +
        void copy_segments(i64, i64, i64) noexcept nogil
        i64 bytes()
        i64 busy, version

cdef extern from "program.h" namespace "bestiary":
    cdef enum Op "bestiary::Op":
        kInput "bestiary::kInput"
        kEmbed "bestiary::kEmbed"
        kGather "bestiary::kGather"
        kRopeTable "bestiary::kRopeTable"
        kRope "bestiary::kRope"
        kQuantize "bestiary::kQuantize"
        kLinearQuantized "bestiary::kLinearQuantized"
        kPack "bestiary::kPack"
        kLinearPlain "bestiary::kLinearPlain"
        kRmsNorm "bestiary::kRmsNorm"
        kLayerNorm "bestiary::kLayerNorm"
        kStore "bestiary::kStore"
        kAttend "bestiary::kAttend"
        kSilu "bestiary::kSilu"
        kSiluMul "bestiary::kSiluMul"
        kGeluTanh "bestiary::kGeluTanh"
        kGeluErf "bestiary::kGeluErf"
        kAdd "bestiary::kAdd"
        kMul "bestiary::kMul"
        kScale "bestiary::kScale"
        kSlice "bestiary::kSlice"
        kSoftCap "bestiary::kSoftCap"
        kExperts "bestiary::kExperts"
        kOrder "bestiary::kOrder"
    cdef cppclass CPart "bestiary::Part":
        const CMatrix *matrix
        const float *bias
        int slot, correction, sums
    cdef cppclass CStep "bestiary::Step":
        int32_t op
        int a, b, c, out
        cbool tail, by_position
        i64 width, group, start
        float number
        vector[int32_t] columns
        const float *weight
        const float *bias
        const CMatrix *matrix
        const CLayout *layout
        const uint8_t *rows
        CRope rope
        int table, stream
        double magnitude
        vector[double] frequencies
        vector[CPart] parts
        vector[pair[int32_t, cbool]] factors
        CAttention attention
        vector[float] slopes
        int cache
        cbool prefix
        vector[i64] ends
        int result
        i64 top
        cbool normalise
    cdef cppclass CProgram "bestiary::Program":
        CProgram(const CTable *, int, int) except +
        int add_slot(i64, cbool) except +
        void add_step(CStep) except +
        void add_experts(CStep, i64) except +
        int add_cache_layer(const CCacheLayer &) except +
        const vector[CCacheLayer] &cache_layers()
        cbool accepts(const CCache &)
        i64 steps()
        void begin(const shared_ptr[CCache] &, i64, const int32_t *, i64, const int32_t *, const int32_t *, i64, const int32_t *,
                   const i64 *) except +
        int run(i64, i64, int (*)(void *) noexcept, void *) except + nogil
        void commit() noexcept
        void end() noexcept
        CCache *cache()
        int threads()
        i64 slot_rows(int)
        i64 slot_width(int)
        cbool slot_tail(int)
        i64 slots()
        void read_slot(int, float *) noexcept
        void write_slot(int, const float *) noexcept
        i64 activation_bytes()

cdef int _pending() except -1:
    return -1  # the signal handler's exception is set already


cdef int _signals(void *unused) noexcept with gil:
    return PyErr_CheckSignals()

KINDS = {"nibble": kNibble, "five": kFive, "byte": kByte, "book": kBook, "two": kTwo, "three": kThree, "six": kSix,
         "f32": kF32, "f16": kF16, "bf16": kBF16}
_MOST_BITS = {"nibble": 4, "five": 5, "byte": 8, "book": 4, "two": 2, "three": 3, "six": 6}
NUMBERS = {"f32": 0, "f16": 1, "bf16": 2, "e8m0": 3}
CACHE_TYPES = {"f32": kHeldF32, "f16": kHeldF16, "q8_0": kHeldQ8}
_WIDTHS = {"f32": 32, "f16": 16, "bf16": 16, "e8m0": 8}
cdef i64 _MOST = 1 << 40  # columns, rows, columns of a group
cdef i64 _LARGEST = 1 << 46  # of any count: what is multiplied with it later stays inside 64 bits


cdef Held _held(str name) except *:
    if name not in CACHE_TYPES:
        raise ValueError(f"cache type {name!r}; known: {', '.join(CACHE_TYPES)}")
    return <Held><int>CACHE_TYPES[name]


cdef bint _once(bint made) except -1:
    """A second __init__ does nothing elsewhere; here it would seem to change what others hold pointers into."""
    if made:
        raise TypeError("it is made already")
    return True


cdef int _unused(i64 busy) except -1:
    if busy and busy == process_id():
        raise ValueError("a forward is running there, in another thread or around this call")
    return 0


def isas():
    """The instruction sets that run here, the slowest first."""
    names = []
    cdef const CTable *const *list = tables()
    cdef int i = 0
    while list[i] != NULL:
        names.append(list[i].name.decode())
        i += 1
    return tuple(names)


cdef const CTable *_table(str name) except NULL:
    cdef const CTable *const *list = tables()
    cdef int i = 0
    while list[i] != NULL:
        if list[i].name.decode() == name:
            return list[i]
        i += 1
    raise ValueError(f"the instruction set {name!r} does not run here; these do: {', '.join(isas())}")


def usable_threads():
    """The least of the affinity mask, the control group's quota rounded down, and the physical cores; at least 1."""
    return c_usable_threads()


ctypedef void (*_Quantizer)(const float *, i64, uint8_t *) noexcept nogil


cdef int _quantize(_Quantizer quantizer, int block_bytes, const float[:, ::1] rows, uint8_t[:, ::1] out) except -1:
    cdef i64 blocks = rows.shape[1] // 32
    if rows.shape[1] % 32 or out.shape[0] != rows.shape[0] or out.shape[1] != blocks * block_bytes:
        raise ValueError(f"rows of {rows.shape[1]} weights into rows of {out.shape[1]} bytes")
    if not rows.shape[0] or not blocks:
        return 0
    with nogil:
        quantizer(&rows[0, 0], rows.shape[0] * blocks, &out[0, 0])
    return 0


def quantize_q8_0_into(const float[:, ::1] rows, uint8_t[:, ::1] out):
    """Rows of float32 into rows of blocks; both contiguous."""
    _quantize(c_quantize_q8_0, 34, rows, out)


def quantize_q4_0_into(const float[:, ::1] rows, uint8_t[:, ::1] out):
    """Rows of float32 into rows of blocks; both contiguous."""
    _quantize(c_quantize_q4_0, 18, rows, out)


def quantize_q4_1_into(const float[:, ::1] rows, uint8_t[:, ::1] out):
    """Rows of float32 into rows of blocks; both contiguous."""
    _quantize(c_quantize_q4_1, 20, rows, out)


def quantize_q5_0_into(const float[:, ::1] rows, uint8_t[:, ::1] out):
    """Rows of float32 into rows of blocks; both contiguous."""
    _quantize(c_quantize_q5_0, 22, rows, out)


def quantize_q5_1_into(const float[:, ::1] rows, uint8_t[:, ::1] out):
    """Rows of float32 into rows of blocks; both contiguous."""
    _quantize(c_quantize_q5_1, 24, rows, out)


cdef CField _field(tuple given, i64 count) except *:
    """(width, offsets, stride, first byte of the plane in the row, bytes of the plane in the row): every address of
    `count` entries is checked."""
    cdef CField field
    width, offsets, stride, start, size = given
    if not 1 <= width <= 32 or not 1 <= len(offsets) <= 1 << 20 or not 0 <= count <= _LARGEST:
        raise ValueError(f"a field of {width} bits with {len(offsets)} offsets")
    period = len(offsets)
    for i, offset in enumerate(offsets[:count]):
        last = offset + (count - 1 - i) // period * stride
        if min(offset, last) < 0 or max(offset, last) + width > 8 * size:
            raise ValueError(f"a field of {width} bits reaches from bit {min(offset, last)} to "
                             f"{max(offset, last) + width} of a plane of {size} bytes a row")
    field.width, field.stride, field.plane_start = width, stride, start
    for offset in offsets:
        if not 0 <= offset <= _LARGEST:
            raise ValueError(f"bit offset {offset}")
        field.offsets.push_back(offset)
    field.prepare()
    return field


cdef CFactor _factor(tuple given, i64 count) except *:
    """(number, field, integer fields, bias, whether the integer is signed)."""
    cdef CFactor factor
    number, at, integer, bias, signed = given
    if number not in NUMBERS:
        raise ValueError(f"number type {number!r}; known: {', '.join(NUMBERS)}")
    if at[0] != _WIDTHS[number]:
        raise ValueError(f"a number of type {number} in {at[0]} bits")
    if sum(piece[0] for piece in integer) > 24 or abs(bias) > 1 << 24:
        raise ValueError("an integer factor of more than 24 bits")
    factor.number = NUMBERS[number]
    factor.at = _field(at, count)
    for piece in integer:
        factor.integer.push_back(_field(piece, count))
    factor.bias, factor.is_signed = bias, signed
    return factor


cdef class Layout:
    """Rows of bytes that the kernels can read: plain numbers, or codes with scales found by bit address."""

    cdef CLayout layout
    cdef readonly str kind
    cdef bint made

    def __cinit__(self, str kind, i64 columns, i64 row_bytes, *, i64 group=0, codes=(), bint signed=False, i64 zero=0,
                 scale=None, minimum=None, int minimum_sign=1, codebook=(), rounded=(), float factor=1.0):
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}; known: {', '.join(KINDS)}")
        if not 1 <= columns <= _MOST or not 1 <= row_bytes <= 1 << 42:
            raise ValueError(f"rows of {columns} weights in {row_bytes} bytes")
        self.kind = kind
        cdef CLayout *l = &self.layout
        l.columns, l.row_bytes, l.kind = columns, row_bytes, KINDS[kind]
        if kind not in _MOST_BITS:
            if row_bytes != columns * (4 if kind == "f32" else 2):
                raise ValueError(f"{columns} {kind} numbers in {row_bytes} bytes")
            return
        width = sum(piece[0] for piece in codes)
        if not 1 <= width <= _MOST_BITS[kind]:
            raise ValueError(f"codes of {width} bits as {kind}")
        if not 1 <= group <= _MOST or group % 32 and group != 16 and group < columns:
            raise ValueError(f"groups of {group} weights; possible: 16, multiples of 32, the whole row")
        if abs(zero) > 4096 or minimum_sign not in (1, -1):
            raise ValueError(f"a zero of {zero}, a minimum's sign of {minimum_sign}")
        for piece in (*codes, scale[1], *scale[2], *((minimum[1], *minimum[2]) if minimum else ())):
            if piece[3] < 0 or piece[4] < 0 or piece[3] + piece[4] > row_bytes:
                raise ValueError(f"a plane of {piece[4]} bytes at {piece[3]} in rows of {row_bytes}")
        numbers = -(-columns // group)
        for piece in codes:
            l.codes.push_back(_field(piece, columns))
        l.width, l.is_signed, l.group = width, signed, group
        l.zero = zero + ((1 << (width - 1)) if signed else 0)
        l.scale = _factor(scale, numbers)
        l.minimum = minimum is not None
        if minimum is not None:
            l.low = _factor(minimum, numbers)
        l.minimum_sign = minimum_sign
        if (kind == "book" or codebook) and not len(codebook) == len(rounded) == 1 << width:
            raise ValueError(f"a codebook of {len(codebook)} numbers, {len(rounded)} of them rounded, for codes of "
                             f"{width} bits")
        if codebook and (signed or zero or kind not in ("book", "byte")):
            raise ValueError(f"codes that are places in a codebook as signed, with a zero, or as {kind}")
        for number in codebook:
            l.book.push_back(number)
        for level in rounded:
            if not -127 <= level <= 127:
                raise ValueError(f"{level} in a codebook of 8 bits")
            l.rounded.push_back(<uint8_t>(level + 128))
        l.factor = factor
        l.prepare()

    def __init__(self, *unused, **also_unused):
        self.made = _once(self.made)

    @property
    def columns(self):
        return self.layout.columns

    @property
    def row_bytes(self):
        return self.layout.row_bytes

    @property
    def straight(self):
        """Whether packing only moves bytes: the quick way."""
        return self.layout.kind >= kF32 or self.layout.straight.first >= 0 and self.layout.straight.numbers

    @property
    def packed_bytes(self):
        """Bytes of sixteen rows once they are packed."""
        return packed_shape(self.layout, 16).group_bytes

    def decode(self, const uint8_t[:, ::1] rows, float[:, ::1] out):
        """Rows of bytes -> their weights."""
        if rows.shape[1] != self.layout.row_bytes or out.shape[0] != rows.shape[0] \
                or out.shape[1] != self.layout.columns:
            raise ValueError(f"rows of {rows.shape[1]} bytes into {out.shape[1]} columns")
        cdef i64 r
        cdef vector[uint8_t] code
        code.resize(self.layout.columns)
        with nogil:
            for r in range(rows.shape[0]):
                self.layout.decode(&rows[r, 0], &out[r, 0], code.data())


cdef class Matrix:
    """A weight packed for the kernels: sixteen rows interleaved."""

    cdef CMatrix matrix
    cdef unique_ptr[Memory] memory
    cdef readonly Layout layout
    cdef readonly i64 nbytes
    cdef bint made

    def __cinit__(self, Layout layout not None, i64 rows):
        if not 1 <= rows <= _MOST:
            raise ValueError(f"{rows} rows")
        self.layout = layout
        self.matrix = packed_shape(layout.layout, rows)
        size = int(self.matrix.groups) * int(self.matrix.group_bytes)
        if size > _LARGEST:
            raise MemoryError(f"a matrix of {size} bytes")
        self.nbytes = size
        self.memory.reset(new Memory(size))
        self.matrix.data = self.memory.get().data()

    def __init__(self, *unused, **also_unused):
        self.made = _once(self.made)

    @property
    def rows(self):
        return self.matrix.rows

    @property
    def columns(self):
        return self.matrix.columns

    @property
    def quantized(self):
        return self.matrix.kind < kF32

    def pack(self, const uint8_t[:, ::1] rows, i64 start):
        """Rows of bytes, in the layout, become rows start... Several threads may pack ranges that begin and end at
        multiples of 16."""
        cdef i64 count = rows.shape[0]
        if start < 0 or count > self.matrix.rows - start or rows.shape[1] != self.layout.layout.row_bytes:
            raise ValueError(f"rows {start}..{start + count} of {rows.shape[1]} bytes into a matrix of "
                             f"{self.matrix.rows} rows of {self.layout.layout.row_bytes}")
        if count:
            with nogil:
                self.memory.get().populate(self.matrix.data + start // 16 * self.matrix.group_bytes,
                                           (count + 15) // 16 * self.matrix.group_bytes)
                pack_rows(self.matrix, self.layout.layout, &rows[0, 0], start, count)

    def unpack(self, i64 row, float[::1] out):
        """One row as numbers."""
        if not 0 <= row < self.matrix.rows or out.shape[0] != self.matrix.columns:
            raise ValueError(f"row {row} of {self.matrix.rows} into {out.shape[0]} columns")
        unpack_row(self.matrix, row, &out[0])


cdef class Cache:
    """Keys and values of several sequences, allocated in steps of 256 positions."""

    cdef shared_ptr[CCache] cache
    cdef bint made

    def __cinit__(self, Program program not None, i64 sequences, i64 context, str keys, str values):
        if not 1 <= sequences <= 1 << 20 or not 1 <= context <= 1 << 31:
            raise ValueError(f"a cache of {sequences} sequences of {context} tokens")
        cdef Held k_held = _held(keys), v_held = _held(values)  # also where there are no layers
        cdef vector[CCacheLayer] layers = program.program.get().cache_layers()
        cdef size_t i
        for i in range(layers.size()):
            layers[i].k_held, layers[i].v_held = k_held, v_held
        self.cache = make_shared[CCache](layers, sequences, context)

    def __init__(self, *unused, **also_unused):
        self.made = _once(self.made)

    cdef int _check(self, i64 sequence, i64 length) except -1:
        if not 0 <= sequence < self.cache.get().sequences():
            raise ValueError(f"sequence {sequence}; there are {self.cache.get().sequences()}")
        if not 0 <= length <= self.cache.get().length(sequence):
            raise ValueError(f"{length} tokens of a sequence that holds {self.cache.get().length(sequence)}")
        return 0

    @property
    def sequences(self):
        return self.cache.get().sequences()

    @property
    def context(self):
        return self.cache.get().context()

    @property
    def nbytes(self):
        return self.cache.get().bytes()

    def length(self, i64 sequence):
        self._check(sequence, 0)
        return self.cache.get().length(sequence)

    def truncate(self, i64 sequence, i64 length):
        self._check(sequence, length)
        cdef CCache *c = self.cache.get()
        _unused(c.busy)
        c.version += 1
        c.truncate(sequence, length)

    def copy(self, i64 source, i64 target, i64 length):
        self._check(source, length)
        self._check(target, 0)
        cdef CCache *c = self.cache.get()
        _unused(c.busy)
        c.version += 1
        if source != target:
            try:
                c.reserve(target, length)
            except MemoryError:
                c.truncate(target, c.length(target))
                raise
            c.busy = process_id()
            with nogil:
                c.copy_segments(source, target, length)
            c.busy = 0
        c.truncate(target, length)


cdef class Program:
    """A list of steps over slots (the activations of all tokens, or of the wanted ones)."""

    cdef unique_ptr[CProgram] program
    cdef list kept  # what the steps point to
    cdef vector[vector[float]] vectors  # too: growing moves them, and their numbers stay where they are
    cdef dict table_counts, table_halves
    cdef int streams
    cdef object vocabulary, positions_limit
    cdef bint begun, made
    cdef i64 running  # the process in which `run` is at work
    cdef readonly str isa

    def __cinit__(self, str isa, int threads, int threads_prefill):
        if not 1 <= threads <= 1024 or not 1 <= threads_prefill <= 1024:
            raise ValueError(f"{threads} and {threads_prefill} threads; possible: 1 to 1024")
        self.program.reset(new CProgram(_table(isa), threads, threads_prefill))
        self.isa, self.kept, self.streams = isa, [], 0
        self.table_counts, self.table_halves = {}, {}
        self.vocabulary = self.positions_limit = None

    def __init__(self, *unused, **also_unused):
        self.made = _once(self.made)

    # ------------------------------------------------------------ building

    cdef int _building(self) except -1:
        if self.begun:
            raise ValueError("the program has run: nothing can be added")
        return 0

    cdef int _add(self, CStep step) except -1:
        self._building()
        self.program.get().add_step(step)
        return 0

    def slot(self, i64 width, bint tail):
        """A place for (tokens, width) numbers; tail: of the wanted tokens only."""
        self._building()
        if not 1 <= width <= 1 << 31:
            raise ValueError(f"a slot of {width} columns")
        return self.program.get().add_slot(width, tail)

    @property
    def steps(self):
        return self.program.get().steps()

    cdef i64 _width(self, int slot) except -1:
        if not 0 <= slot < self.program.get().slots():
            raise ValueError(f"slot {slot} of {self.program.get().slots()}")
        return self.program.get().slot_width(slot)

    cdef int _need(self, int slot, i64 width, bint tail) except -1:
        if self._width(slot) != width:
            raise ValueError(f"slot {slot} is {self._width(slot)} columns wide, not {width}")
        if self.program.get().slot_tail(slot) != tail:
            raise ValueError(f"slot {slot} has the rows of {'all' if tail else 'the wanted'} tokens, the step those of "
                             f"{'the wanted' if tail else 'all'}")
        return 0

    cdef const float *_vector(self, values, i64 count) except? NULL:
        if values is None:
            return NULL
        cdef const float[::1] view = values
        if view.shape[0] != count:
            raise ValueError(f"{view.shape[0]} values, not {count}")
        cdef vector[float] copied
        copied.assign(&view[0], &view[0] + count)  # small, and the array may be resized or freed under its views
        self.vectors.push_back(copied)
        return self.vectors.back().data()

    def embed_matrix(self, int out, Matrix matrix not None, bint by_position):
        cdef CStep s
        self._need(out, matrix.matrix.columns, False)
        s.op, s.out, s.width, s.matrix, s.by_position = kEmbed, out, matrix.matrix.columns, &matrix.matrix, by_position
        self._limit(matrix.matrix.rows, by_position)
        self.kept.append(matrix)
        self._add(s)

    def embed_rows(self, int out, Layout layout not None, const uint8_t[:, ::1] rows, bint by_position):
        cdef CStep s
        self._need(out, layout.layout.columns, False)
        if rows.shape[1] != layout.layout.row_bytes or rows.shape[0] < 1:
            raise ValueError(f"rows of {rows.shape[1]} bytes, not {layout.layout.row_bytes}")
        s.op, s.out, s.width, s.layout, s.by_position = kEmbed, out, layout.layout.columns, &layout.layout, by_position
        s.rows = &rows[0, 0]
        self._limit(rows.shape[0], by_position)
        self.kept.append((layout, rows))
        self._add(s)

    def _limit(self, rows, by_position):
        if by_position:
            self.positions_limit = rows if self.positions_limit is None else min(rows, self.positions_limit)
            self.streams = max(self.streams, 1)
        else:
            self.vocabulary = rows if self.vocabulary is None else min(rows, self.vocabulary)

    def gather(self, int a, int out):
        cdef CStep s
        self._need(a, self._width(a), False)
        self._need(out, self._width(a), True)
        s.op, s.a, s.out, s.width, s.tail = kGather, a, out, self._width(a), True
        self._add(s)

    def rope_table(self, int table, frequencies, bint halves, double magnitude, int stream):
        """Cosines and sines of every token's position, for the rope steps that name this table."""
        cdef CStep s
        if table != len(self.table_counts) or not len(frequencies) or not 0 <= stream < 64:
            raise ValueError(f"rope table {table} of {len(frequencies)} pairs, stream {stream}")
        s.op, s.table, s.stream, s.magnitude = kRopeTable, table, stream, magnitude
        s.rope.halves, s.rope.count = halves, 2 * len(frequencies)
        for frequency in frequencies:
            s.frequencies.push_back(frequency)
        self.table_counts[table], self.table_halves[table] = 2 * len(frequencies), halves
        self.streams = max(self.streams, stream + 1)
        self._add(s)

    def rope(self, int a, int out, int table, i64 head_dim, i64 start, bint tail):
        cdef CStep s
        if table not in self.table_counts or head_dim < 1 or self._width(a) % head_dim or start < 0 \
                or start > head_dim - self.table_counts[table]:
            raise ValueError(f"rope table {table} from column {start} of heads of {head_dim}")
        self._need(a, self._width(a), tail)
        self._need(out, self._width(a), tail)
        s.op, s.a, s.out, s.width, s.table, s.tail = kRope, a, out, self._width(a), table, tail
        s.rope.heads, s.rope.head_dim, s.rope.start = self._width(a) // head_dim, head_dim, start
        s.rope.count, s.rope.halves = self.table_counts[table], self.table_halves[table]
        self._add(s)

    def linear(self, int a, parts, bint tail):
        """parts: (matrix, bias or None, slot of the result); all of them multiply slot a."""
        for quantized in (True, False):
            these = [part for part in parts if part[0].quantized == quantized]
            if these:
                self._linear(a, these, quantized, tail)

    cdef _linear(self, int a, list parts, bint quantized, bint tail):
        cdef CStep prepare, step
        cdef CPart part
        cdef Matrix m
        cdef list factors = []
        prepare.op, step.op = (kQuantize if quantized else kPack), (kLinearQuantized if quantized else kLinearPlain)
        prepare.a = a
        prepare.tail = step.tail = tail
        prepare.width = step.width = self._width(a)
        self._need(a, prepare.width, tail)
        for matrix, bias, out in parts:
            m = matrix
            if m.matrix.columns != self._width(a):
                raise ValueError(f"a matrix of {m.matrix.columns} columns on slot {a}")
            self._need(out, m.matrix.rows, tail)
            part.matrix, part.bias, part.slot = &m.matrix, self._vector(bias, m.matrix.rows), out
            for wanted in ((-m.matrix.zero, bool(m.matrix.half)), (1, bool(m.matrix.half))):
                if wanted not in factors:
                    factors.append(wanted)
            part.correction = factors.index((-m.matrix.zero, bool(m.matrix.half)))
            part.sums = factors.index((1, bool(m.matrix.half)))
            step.parts.push_back(part)
            self.kept.append(m)
        for factor, half in factors:
            prepare.factors.push_back(pair[int32_t, cbool](<int32_t>factor, <cbool>half))
        self._add(prepare)
        self._add(step)

    def experts(self, int a, int logits, int out, experts, tuple slots, i64 top, bint normalise, bint tail):
        """Each row's `top` experts by their logits, each down(silu(gate x) * up x), summed by their probabilities.
        experts: (gate, up, down) each; slots: of one expert's inputs, gates, ups and results."""
        cdef CStep s
        gathered, gates, ups, result = slots
        cdef i64 width = self._width(a), first = self.program.get().steps()
        if not 1 <= top <= len(experts) or self._width(logits) != len(experts):
            raise ValueError(f"{top} of {len(experts)} experts by {self._width(logits)} logits")
        self._need(a, width, tail)
        for slot in (gathered, result, out):
            self._need(slot, width, tail)
        self._need(logits, len(experts), tail)
        self._building()
        s.op, s.a, s.b, s.c, s.out, s.width, s.tail = kExperts, a, logits, gathered, out, width, tail
        s.result, s.top, s.normalise = result, top, normalise
        for gate, up, down in experts:
            self.linear(gathered, [(gate, None, gates), (up, None, ups)], tail)
            self.each("silu_mul", gates, ups, gates, 0.0, tail)
            self.linear(gates, [(down, None, result)], tail)
            s.ends.push_back(self.program.get().steps() - first)
        self.program.get().add_experts(s, first)

    def norm(self, str kind, int a, int out, weight, bias, float eps, i64 group, bint tail):
        cdef CStep s
        if kind not in ("rms_norm", "layer_norm") or group < 1 or self._width(a) % group:
            raise ValueError(f"{kind} over groups of {group} of {self._width(a)} columns")
        self._need(a, self._width(a), tail)
        self._need(out, self._width(a), tail)
        s.op, s.a, s.out, s.width, s.tail = (kRmsNorm if kind == "rms_norm" else kLayerNorm), a, out, self._width(a), tail
        s.weight, s.bias = self._vector(weight, group), self._vector(bias, group)
        s.number, s.group = eps, group
        self._add(s)

    def each(self, str kind, int a, int b, int out, float number, bint tail):
        """A step that works entry by entry; b only where two values go in."""
        cdef CStep s
        known = {"silu": kSilu, "silu_mul": kSiluMul, "gelu_tanh": kGeluTanh, "gelu_erf": kGeluErf, "add": kAdd,
                 "mul": kMul, "scale": kScale, "soft_cap": kSoftCap}
        if kind not in known:
            raise ValueError(f"{kind}; known: {', '.join(known)}")
        self._need(a, self._width(a), tail)
        self._need(out, self._width(a), tail)
        if kind in ("silu_mul", "add", "mul"):
            self._need(b, self._width(a), tail)
        else:
            b = a
        s.op, s.a, s.b, s.out, s.width, s.tail, s.number = known[kind], a, b, out, self._width(a), tail, number
        self._add(s)

    def slice(self, int a, int out, i64 start, bint tail):
        cdef CStep s
        if start < 0 or start > self._width(a) - self._width(out):
            raise ValueError(f"{self._width(out)} columns from {start} on, of {self._width(a)}")
        self._need(a, self._width(a), tail)
        self._need(out, self._width(out), tail)
        s.op, s.a, s.out, s.start, s.width, s.tail = kSlice, a, out, start, self._width(out), tail
        self._add(s)

    def order(self, int a, int out, const int32_t[::1] columns not None, bint tail):
        """Column columns[i] of slot a becomes column i."""
        cdef CStep s
        cdef i64 i, width = self._width(a)
        if a == out or columns.shape[0] != width:
            raise ValueError(f"an order of {columns.shape[0]} columns from slot {a} of {width} into slot {out}")
        self._need(a, width, tail)
        self._need(out, width, tail)
        s.columns.assign(&columns[0], &columns[0] + width)  # what is checked is what is kept
        for i in range(width):
            if not 0 <= s.columns[i] < width:
                raise ValueError(f"column {s.columns[i]} of {width}")
        s.op, s.a, s.out, s.width, s.tail = kOrder, a, out, width, tail
        self._add(s)

    def attention(self, int q, int k, int v, int out, i64 heads, i64 kv_heads, float scale, float soft_cap, i64 window,
                  slopes, str keys, str values, bint tail):
        """Two steps: keys and values of all tokens go to the cache, as the types of CACHE_TYPES that are named, then the
        queries attend, of all or of the wanted ones. Returns the cache's layer."""
        cdef CStep s
        cdef CCacheLayer layer
        if kv_heads < 1 or heads < kv_heads or heads % kv_heads or self._width(q) % heads \
                or self._width(k) % kv_heads or self._width(v) % kv_heads \
                or self._width(q) // heads != self._width(k) // kv_heads or len(slopes) not in (0, heads) or window < 0:
            raise ValueError(f"attention of {heads} heads with {kv_heads} key heads")
        layer.kv_heads, layer.k_held, layer.v_held = kv_heads, _held(keys), _held(values)
        layer.key_dim, layer.value_dim = self._width(k) // kv_heads, self._width(v) // kv_heads
        self._need(k, self._width(k), False)  # no loop: Cython would take its variable for a truth value
        self._need(v, self._width(v), False)
        self._need(q, self._width(q), tail)
        self._need(out, heads * layer.value_dim, tail)
        s.cache = self.program.get().add_cache_layer(layer)
        s.attention.heads, s.attention.kv_heads = heads, kv_heads
        s.attention.key_dim, s.attention.value_dim = layer.key_dim, layer.value_dim
        s.attention.value_stride = (layer.value_dim + 15) // 16 * 16
        s.attention.scale, s.attention.soft_cap, s.attention.window = scale, soft_cap, window
        s.attention.k_held, s.attention.v_held = layer.k_held, layer.v_held
        s.op, s.a, s.b, s.width = kStore, k, v, self._width(k) + self._width(v)
        self._add(s)
        for slope in slopes:
            s.slopes.push_back(slope)
        s.op, s.a, s.b, s.out, s.width, s.tail = kAttend, q, q, out, self._width(q), tail
        self._add(s)
        return s.cache

    # ------------------------------------------------------------ running

    def begin(self, Cache cache not None, ids, const int32_t[:, ::1] positions, const int32_t[::1] sequences,
              const int32_t[::1] wanted, prefixes):
        """Starts a forward over n tokens. Checks all that the steps rely on; raises ValueError."""
        cdef i64 n = sequences.shape[0], i
        cdef CCache *c = cache.cache.get()
        cdef CProgram *p = self.program.get()
        cdef const int32_t[::1] tokens
        cdef const int32_t *id_pointer = NULL
        cdef vector[i64] counts, prefix
        # Whatever may run Python code comes before the checks.
        cdef list pairs = [(int(sequence), int(length)) for sequence, length in (prefixes or {}).items()]
        if n < 1:
            raise ValueError("a batch of no tokens")
        if ids is not None:
            tokens = ids
        _unused(self.running)
        _unused(c.busy)
        p.end()
        if ids is not None:
            if tokens.shape[0] != n:
                raise ValueError(f"{tokens.shape[0]} ids for {n} tokens")
            id_pointer = &tokens[0]
            if self.vocabulary is not None:
                for i in range(n):
                    if not 0 <= tokens[i] < self.vocabulary:
                        raise ValueError(f"token id {tokens[i]}; the vocabulary has {self.vocabulary}")
        elif self.vocabulary is not None:
            raise ValueError("this graph begins with token ids, not with hidden rows")
        if positions.shape[1] != n or positions.shape[0] < self.streams:
            raise ValueError(f"positions of {positions.shape[0]} x {positions.shape[1]}; needed: {self.streams} x {n}")
        if self.positions_limit is not None:
            for i in range(n):
                if not 0 <= positions[0, i] < self.positions_limit:
                    raise ValueError(f"position {positions[0, i]}; the model has {self.positions_limit}")
        if not p.accepts(c[0]):
            raise ValueError("the cache belongs to another plan")
        counts.assign(c.sequences(), 0)
        prefix.assign(c.sequences(), 0)
        for i in range(n):
            if not 0 <= sequences[i] < c.sequences():
                raise ValueError(f"sequence {sequences[i]}; the cache has {c.sequences()}")
            counts[sequences[i]] += 1
        for i in range(<i64>counts.size()):
            if c.length(i) + counts[i] > c.context():
                raise ValueError(f"sequence {i} would hold {c.length(i) + counts[i]} tokens; the context is "
                                 f"{c.context()}")
        for sequence, length in pairs:
            if not 0 <= sequence < c.sequences():
                raise ValueError(f"sequence {sequence}; the cache has {c.sequences()}")
            if length > c.length(sequence) and counts[sequence] and length > c.length(sequence) + counts[sequence]:
                raise ValueError(f"a prefix of {length} tokens, of which only {c.length(sequence) + counts[sequence]} "
                                 "are there; it takes one forward")
            prefix[sequence] = length
        for i in range(wanted.shape[0]):
            if not 0 <= wanted[i] < n:
                raise ValueError(f"token {wanted[i]} is wanted of a batch of {n}")
        try:
            p.begin(cache.cache, n, id_pointer, positions.shape[0], &positions[0, 0] if positions.shape[0] else NULL,
                    &sequences[0], wanted.shape[0], &wanted[0] if wanted.shape[0] else NULL, prefix.data())
        except BaseException:
            c.version += 1  # a forward begun elsewhere must not look for what is freed here
            for i in range(c.sequences()):
                c.truncate(i, c.length(i))
            raise
        self.begun = True

    def run(self, i64 start, i64 stop):
        """Runs steps start..stop-1; raises what a signal handler raised meanwhile (KeyboardInterrupt)."""
        cdef int result
        cdef CProgram *p = self.program.get()
        cdef CCache *c
        if not 0 <= start <= stop <= self.program.get().steps():
            raise ValueError(f"steps {start}..{stop} of {self.program.get().steps()}")
        c = self._current()
        _unused(c.busy)
        self.running = c.busy = process_id()
        try:
            with nogil:
                result = p.run(start, stop, _signals, NULL)
            if result:
                _pending()
        except BaseException:
            self.running = c.busy = 0
            p.end()
            raise
        self.running = c.busy = 0

    def commit(self):
        """The cache now holds the tokens of the batch."""
        _unused(self._current().busy)
        self.program.get().commit()

    def end(self):
        """Gives up the forward, if one was begun; the cache is as before."""
        _unused(self.running)
        self.program.get().end()

    @property
    def threads(self):
        """Threads at work, or wanted before the first forward; fewer where the system gave no more."""
        return self.program.get().threads()

    cdef CCache *_current(self) except NULL:
        _unused(self.running)
        cdef CCache *c = self.program.get().cache()
        if c == NULL:
            raise ValueError("no forward was begun, or its cache was changed since")
        return c

    cdef int _rows(self, int slot, i64 rows, i64 columns) except -1:
        _unused(self.running)
        cdef i64 width = self._width(slot), there = self.program.get().slot_rows(slot)
        if columns != width or rows != there:
            raise ValueError(f"slot {slot} is {there} x {width}, not {rows} x {columns}")
        return 0

    def read(self, int slot, float[:, ::1] out):
        """A slot's numbers."""
        self._rows(slot, out.shape[0], out.shape[1])
        if out.shape[0]:
            self.program.get().read_slot(slot, &out[0, 0])

    def write(self, int slot, const float[:, ::1] values):
        """Sets a slot's numbers."""
        self._rows(slot, values.shape[0], values.shape[1])
        if values.shape[0]:
            self.program.get().write_slot(slot, &values[0, 0])

    def rows(self, int slot):
        """Rows that the slot has in the forward begun last."""
        self._width(slot)
        return self.program.get().slot_rows(slot)
