"""The operations of PTX that the emulator knows, the C of each of them, and the constants of the clock.

An operation is one line of :data:`OPS`: the opcode without cache qualifiers, its signature, the C expression of one
lane, and its class, by which it is counted and timed. The signature gives the kind of each operand, the result first:
``r`` 32 bits, ``q`` 64 bits, ``p`` a predicate. Those of :data:`SPECIAL` have a case of their own in ``engine.c``.

The clock is a model, not a measurement, with cycles of an H100 from published microbenchmarks. Warps issue in order,
and those of one program sit on schedulers of their own. An instruction starts when its operands are there. A load of
global memory takes :data:`FAR` cycles where this program did not load its sector since it was last written, else those
of the L1 cache; shared memory is passed once for each of the different words that one bank gives.
"""

CLASSES = {
    "int": (5, 1), "intdiv": (60, 25), "mov": (2, 1), "cvt": (6, 2), "fp": (4, 1), "fdiv": (30, 8), "mufu": (18, 4),
    "mma": (18, 2), "ldg": (33, 1), "stg": (1, 1), "lds": (23, 1), "sts": (1, 1), "ldsm": (29, 1), "shfl": (23, 1),
    "bar": (1, 1), "bra": (8, 1), "other": (1, 1),
}  # fmt: skip
"""Of each class the cycles until a result can be used, and the issue slots that it takes of its scheduler."""
FAR = 260
"""Cycles of a load that comes from the L2 cache."""
BARRIER = 25
"""Cycles from the last warp's arrival until all go on."""
OPS: dict[str, tuple[str, str, str]] = {}
"""Of each opcode its signature, a C expression of a, b, c, d, and its class."""


def _op(names: str, signature: str, expression: str, kind: str = "int") -> None:
    for name in names.split():
        OPS[name] = (signature, expression, kind)


_LOGIC = {"and": "a&b", "or": "a|b", "xor": "a^b"}
_ORDER = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
for _n, _l in ((32, "r"), (64, "q")):
    _U, _S, _most = f"(uint{_n}_t)", f"(int{_n}_t)", _n - 1
    _op(f"add.s{_n} add.u{_n}", _l * 3, "a+b")
    _op(f"sub.s{_n} sub.u{_n}", _l * 3, "a-b")
    _op(f"mul.lo.s{_n} mul.lo.u{_n}", _l * 3, "a*b")
    _op(f"mad.lo.s{_n} mad.lo.u{_n}", _l * 4, "a*b+c")
    _op(f"div.s{_n}", _l * 3, f"b?{_U}({_S}b==-1?-{_S}a:{_S}a/{_S}b):~{_U}0", "intdiv")
    _op(f"rem.s{_n}", _l * 3, f"b?{_U}({_S}b==-1?0:{_S}a%{_S}b):a", "intdiv")
    _op(f"div.u{_n}", _l * 3, f"b?a/b:~{_U}0", "intdiv")
    _op(f"rem.u{_n}", _l * 3, "b?a%b:a", "intdiv")
    _op(f"neg.s{_n}", _l * 2, "-a")
    _op(f"abs.s{_n}", _l * 2, f"{_S}a<0?-a:a")
    _op(f"not.b{_n}", _l * 2, "~a")
    _op(f"shl.b{_n}", f"{_l}{_l}r", f"b>{_most}?0:a<<(b&{_most})")
    _op(f"shr.u{_n} shr.b{_n}", f"{_l}{_l}r", f"b>{_most}?0:a>>(b&{_most})")
    _op(f"shr.s{_n}", f"{_l}{_l}r", f"{_U}({_S}a>>(b>{_most}?{_most}:b))")
    _op(" ".join(f"mov.{_t}{_n}" for _t in "busf"), _l * 2, "a", "mov")
    _op(" ".join(f"selp.{_t}{_n}" for _t in "busf"), f"{_l * 3}p", "c?a:b")
    for _name, _e in _LOGIC.items():
        _op(f"{_name}.b{_n}", _l * 3, _e)
    for _name, _e in {"min": "<", "max": ">"}.items():
        _op(f"{_name}.s{_n}", _l * 3, f"{_S}a{_e}{_S}b?a:b")
        _op(f"{_name}.u{_n}", _l * 3, f"a{_e}b?a:b")
    for _t, _cast in (("s", _S), ("u", ""), ("b", "")):
        for _name, _e in (_ORDER | {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}).items():
            _op(f"setp.{_name}.{_t}{_n}", f"p{_l}{_l}", f"{_cast}a{_e}{_cast}b")
_S32, _S64, _BOTH = "(int32_t)", "(int64_t)(int32_t)", "((uint64_t)b<<32|a)"
_op("mul.wide.s32", "qrr", f"(uint64_t)({_S64}a*{_S64}b)")
_op("mul.wide.u32", "qrr", "(uint64_t)a*b")
_op("mul.hi.s32", "rrr", f"(uint32_t)(({_S64}a*{_S64}b)>>32)")
_op("mul.hi.u32", "rrr", "(uint32_t)(((uint64_t)a*b)>>32)")
_op("mad.wide.s32", "qrrq", f"(uint64_t)({_S64}a*{_S64}b)+c")
_op("mad.wide.u32", "qrrq", "(uint64_t)a*b+c")
_op("bfe.u32", "rrrr", "bfe_u(a,b,c)")
_op("bfe.s32", "rrrr", "bfe_s(a,b,c)")
_op("popc.b32", "rr", "(uint32_t)__builtin_popcount(a)")
_op("bfi.b32", "rrrrr", "bfi(a,b,c,d)")
_op("prmt.b32", "rrrr", "prmt(a,b,c)")
_op("shf.l.wrap.b32", "rrrr", f"(uint32_t)(({_BOTH}<<(c&31))>>32)")
_op("shf.r.wrap.b32", "rrrr", f"(uint32_t)({_BOTH}>>(c&31))")
_op("selp.b16 selp.s16 selp.u16", "rrrp", "c?a:b")
# of 16 bits, in registers whose upper half nobody looks at
_U16, _S16 = "(uint16_t)", "(int16_t)"
for _name, _e in _ORDER.items():
    _op(f"setp.{_name}.s16", "prr", f"{_S16}a{_e}{_S16}b")
    _op(f"setp.{_name}.u16 setp.{_name}.b16", "prr", f"{_U16}a{_e}{_U16}b")
for _name, _e in {"add": "+", "sub": "-", "mul.lo": "*"}.items():
    _op(f"{_name}.s16 {_name}.u16", "rrr", f"a{_e}b")
for _name, _e in _LOGIC.items():
    _op(f"{_name}.b16", "rrr", _e)
_op("mul.wide.u16", "rrr", f"(uint32_t){_U16}a*{_U16}b")
_op("mul.wide.s16", "rrr", f"{_S16}a*{_S16}b")
_op("mul.hi.u16", "rrr", f"(uint32_t){_U16}a*{_U16}b>>16")
_op("mul.hi.s16", "rrr", f"{_S16}a*{_S16}b>>16")
_op("mad.lo.s16 mad.lo.u16", "rrrr", "a*b+c")
_op("shl.b16", "rrr", "b>15?0:a<<b")
_op("shr.u16 shr.b16", "rrr", f"b>15?0:{_U16}a>>b")
_op("shr.s16", "rrr", f"{_S16}a>>(b>15?15:b)")
_op("neg.s16", "rr", "-a")
_op("not.b16", "rr", "~a")
_op("cvt.u32.u16", "rr", f"{_U16}a")
_op("cvt.u64.u16", "qr", f"(uint64_t){_U16}a")
_op("cvt.s64.s16", "qr", f"(uint64_t)(int64_t){_S16}a")
_op("cvt.s32.s16", "rr", f"(uint32_t){_S16}a")
_op("cvt.u16.u32 cvt.s16.s32 cvt.u16.u16", "rr", "a")
_op("cvt.u16.u64", "rq", "(uint32_t)a")
_op("mad.wide.u16", "rrrr", f"(uint32_t){_U16}a*{_U16}b+c")
for _name, _e in _LOGIC.items():
    _op(f"{_name}.pred", "ppp", _e)  # of whole masks
_op("not.pred", "pp", "~a")
_op("mov.pred", "pp", "a", "mov")
_op("mov.b16 mov.u16", "rr", "a", "mov")
_op("pack", "qrr", _BOTH, "mov")
_op("pack.b32", "rrr", "(a&0xffff)|b<<16", "mov")
_op("cvta.shared.u64", "qq", "a+0x500000000000ull")  # good for comparisons; generic loads are not known
_op("cvta.to.global.u64 cvta.global.u64", "qq", "a", "mov")  # generic addresses of global memory are the same
_op("cvt.s64.s32", "qr", f"(uint64_t){_S64}a")
_op("cvt.u64.u32", "qr", "(uint64_t)a")
_op("cvt.u32.u64 cvt.s32.s64", "rq", "(uint32_t)a")
_op("cvt.rn.f32.s32", "rr", f"B((float){_S32}a)", "cvt")
_op("cvt.rn.f32.u32", "rr", "B((float)a)", "cvt")
_op("cvt.rzi.s32.f32", "rr", "f2i(F(a))", "cvt")
_op("cvt.sat.f32.f32", "rr", "B(F(a)>0?fminf(F(a),1):0)", "cvt")  # NaN becomes 0
_op("add.rz.f32", "rrr", "B(towards_zero((double)F(a)+F(b)))", "fp")
_op("fma.rm.f32", "rrrr", "B(downwards(fma(F(a),F(b),F(c))))", "fp")  # exact in double, as CUDA's expf has it
_op("copysign.f32", "rrr", "a&0x80000000u|b&0x7fffffffu", "fp")
_op("cvt.rn.bf16x2.f32", "rrr", "(bf16(a)<<16)|bf16(b)", "cvt")
_op("cvt.rn.bf16.f32", "rr", "bf16(a)", "cvt")
_op("cvt.rna.tf32.f32", "rr", "rna_tf32(a)", "cvt")
for _name, _e in {"add": "+", "sub": "-", "mul": "*"}.items():
    _op(f"{_name}.f32x2 {_name}.rn.f32x2", "qqq", f"two(LO(a){_e}LO(b),HI(a){_e}HI(b))", "fp")
    _op(f"{_name}.f32 {_name}.rn.f32", "rrr", f"B(F(a){_e}F(b))", "fp")
    _op(f"{_name}.ftz.f32 {_name}.rn.ftz.f32", "rrr", f"Bz(Z(a){_e}Z(b))", "fp")
_op("fma.rn.f32x2", "qqqq", "two(fmaf(LO(a),LO(b),LO(c)),fmaf(HI(a),HI(b),HI(c)))", "fp")
for _f, _a, _b, _c, _out in (("", "F(a)", "F(b)", "F(c)", "B"), (".ftz", "Z(a)", "Z(b)", "Z(c)", "Bz")):
    _op(f"fma.rn{_f}.f32", "rrrr", f"{_out}(fmaf({_a},{_b},{_c}))", "fp")
    _op(f"abs{_f}.f32", "rr", f"B(fabsf({_a}))", "fp")
    _op(f"neg{_f}.f32", "rr", f"B(-{_a})", "fp")
    for _name in ("max", "min"):
        _op(f"{_name}{_f}.f32", "rrr", f"{_out}(f{_name}f({_a},{_b}))", "fp")
        # of three operands, as sm_100 has it
        OPS[f"{_name}{_f}.f32 of 3"] = "rrrr", f"{_out}(f{_name}f(f{_name}f({_a},{_b}),{_c}))", "fp"
    _op(f"div.full{_f}.f32 div.rn{_f}.f32 div.approx{_f}.f32", "rrr", f"{_out}({_a}/{_b})", "fdiv")
    for _name, _e in {
        "rcp.approx": f"1.0f/{_a}", "rcp.rn": f"1.0f/{_a}", "sqrt.approx": f"sqrtf({_a})", "sqrt.rn": f"sqrtf({_a})",
        "rsqrt.approx": f"(float)(1.0/sqrt((double){_a}))", "ex2.approx": f"(float)exp2((double){_a})",
        "lg2.approx": f"(float)log2((double){_a})",
    }.items():  # fmt: skip
        _op(f"{_name}{_f}.f32", "rr", f"{_out}({_e})", "mufu")
    _unordered = f"({_a}!={_a}||{_b}!={_b})"  # one of them is NaN
    for _name, _e in _ORDER.items():
        _op(f"setp.{_name}{_f}.f32", "prr", f"!{_unordered}&&{_a}{_e}{_b}", "fp")
        _op(f"setp.{_name}u{_f}.f32", "prr", f"{_unordered}||{_a}{_e}{_b}", "fp")
    _op(f"setp.num{_f}.f32", "prr", f"!{_unordered}", "fp")
    _op(f"setp.nan{_f}.f32", "prr", _unordered, "fp")

TOGETHER = [
    "bar", "shfl.bfly", "shfl.idx", "shfl.up", "shfl.down", "redux", "ldmatrix", "stmatrix", "mma.tf32", "mma.bf16"
]  # fmt: skip
"""Operations that all lanes of a warp have to take part in."""
SPECIAL = [
    *TOGETHER, "ld.global", "st.global", "ld.shared", "st.shared", "bra", "warpsync", "ret", "fence", "unpack",
    "unpack.b32", "cp", "cp.commit", "cp.wait",
]  # fmt: skip
CODES = {name: number for number, name in enumerate([*SPECIAL, *OPS])}


def cases() -> str:
    """The C switch cases of :data:`OPS`."""
    return "\n".join(f"case {CODES[name]}: /* {name} */ {{{_case(*of[:2])}}} break;" for name, of in OPS.items())


def _case(signature: str, expression: str) -> str:
    result, sources = signature[0], list(zip("abcd", signature[1:], range(4), strict=False))
    if set(signature) == {"p"}:  # whole masks
        masks = "".join(f"uint32_t {name}=*S({i});" for name, _, i in sources)
        return f"{masks} PUT_MASK({expression})"
    places = {"r": "uint32_t*{0}p=S({1});", "q": "uint64_t*{0}p=S64({1});", "p": "uint32_t {0}p=*S({1});"}
    values = {"r": "uint32_t {0}={0}p[l];", "q": "uint64_t {0}={0}p[l];", "p": "uint32_t {0}={0}p>>l&1;"}
    before = "".join(places[kind].format(name, i) for name, kind, i in sources)
    each = f"{before} for(int l=0;l<32;l++){{" + "".join(values[kind].format(name) for name, kind, _ in sources)
    if result == "p":
        return f"uint32_t t=0; {each} t|=(uint32_t)!!({expression})<<l;}} PUT_MASK(t)"
    return f"uint{32 if result == 'r' else 64}_t t[32]; {each} t[l]={expression};}} PUT(t)"
