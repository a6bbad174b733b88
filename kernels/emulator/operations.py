"""The operations of PTX that the emulator knows, and the C of each of them.

An operation is one line of :data:`OPS`: the opcode without cache qualifiers, its signature, the C expression of one
lane, and its class, by which it is counted and timed. The signature gives the kind of each operand, the result first:
``r`` 32 bits, ``q`` 64 bits, ``p`` a predicate. Those of :data:`SPECIAL` have a case of their own in ``engine.c``.
"""

from __future__ import annotations

__all__ = ["CLASSES", "CODES", "OPS", "SPECIAL", "cases", "defines"]

_S32, _S64 = "(int32_t)", "(int64_t)"
OPS: dict[str, tuple[str, str, str]] = {}
"""Of each opcode its signature, a C expression of a, b, c, d, and its class."""


def _op(names: str, signature: str, expression: str, kind: str) -> None:
    for name in names.split():
        OPS[name] = (signature, expression, kind)


_op("add.s32 add.u32", "rrr", "a+b", "int")
_op("sub.s32 sub.u32", "rrr", "a-b", "int")
_op("add.s64 add.u64", "qqq", "a+b", "int")
_op("sub.s64 sub.u64", "qqq", "a-b", "int")
_op("mul.lo.s32 mul.lo.u32", "rrr", "a*b", "int")
_op("mul.lo.s64 mul.lo.u64", "qqq", "a*b", "int")
_op("mul.wide.s32", "qrr", f"(uint64_t)({_S64}{_S32}a*{_S64}{_S32}b)", "int")
_op("mul.wide.u32", "qrr", "(uint64_t)a*(uint64_t)b", "int")
_op("mul.hi.s32", "rrr", f"(uint32_t)(({_S64}{_S32}a*{_S64}{_S32}b)>>32)", "int")
_op("mul.hi.u32", "rrr", "(uint32_t)(((uint64_t)a*(uint64_t)b)>>32)", "int")
_op("mad.lo.s32 mad.lo.u32", "rrrr", "a*b+c", "int")
_op("mad.lo.s64 mad.lo.u64", "qqqq", "a*b+c", "int")
_op("mad.wide.s32", "qrrq", f"(uint64_t)({_S64}{_S32}a*{_S64}{_S32}b)+c", "int")
_op("mad.wide.u32", "qrrq", "(uint64_t)a*(uint64_t)b+c", "int")
_op("div.s32", "rrr", f"b?(uint32_t)({_S32}a==INT32_MIN&&{_S32}b==-1?{_S32}a:{_S32}a/{_S32}b):~0u", "intdiv")
_op("rem.s32", "rrr", f"b?(uint32_t)({_S32}b==-1?0:{_S32}a%{_S32}b):a", "intdiv")
_op("div.u32", "rrr", "b?a/b:~0u", "intdiv")
_op("rem.u32", "rrr", "b?a%b:a", "intdiv")
_op("div.s64", "qqq", f"b?(uint64_t)({_S64}b==-1?-{_S64}a:{_S64}a/{_S64}b):~0ull", "intdiv")
_op("rem.s64", "qqq", f"b?(uint64_t)({_S64}b==-1?0:{_S64}a%{_S64}b):a", "intdiv")
_op("div.u64", "qqq", "b?a/b:~0ull", "intdiv")
_op("rem.u64", "qqq", "b?a%b:a", "intdiv")
for _s, _cast in (("s32", _S32), ("u32", "")):
    _op(f"min.{_s}", "rrr", f"{_cast}a<{_cast}b?a:b", "int")
    _op(f"max.{_s}", "rrr", f"{_cast}a>{_cast}b?a:b", "int")
for _s, _cast in (("s64", _S64), ("u64", "")):
    _op(f"min.{_s}", "qqq", f"{_cast}a<{_cast}b?a:b", "int")
    _op(f"max.{_s}", "qqq", f"{_cast}a>{_cast}b?a:b", "int")
_op("neg.s32", "rr", "-a", "int")
_op("neg.s64", "qq", "-a", "int")
_op("abs.s32", "rr", f"{_S32}a<0?-a:a", "int")
for _bits, _l in (("32", "r"), ("64", "q")):
    for _n, _e in (("and", "a&b"), ("or", "a|b"), ("xor", "a^b")):
        _op(f"{_n}.b{_bits}", _l * 3, _e, "int")
    _op(f"not.b{_bits}", _l * 2, "~a", "int")
for _n, _e in (("and", "a&b"), ("or", "a|b"), ("xor", "a^b")):
    _op(f"{_n}.pred", "ppp", _e, "int")
_op("not.pred", "pp", "!a", "int")
_op("shl.b32", "rrr", "b>31?0:a<<(b&31)", "int")
_op("shr.u32 shr.b32", "rrr", "b>31?0:a>>(b&31)", "int")
_op("shr.s32", "rrr", f"(uint32_t)({_S32}a>>(b>31?31:b))", "int")
_op("shl.b64", "qqr", "b>63?0:a<<(b&63)", "int")
_op("shr.u64 shr.b64", "qqr", "b>63?0:a>>(b&63)", "int")
_op("shr.s64", "qqr", f"(uint64_t)({_S64}a>>(b>63?63:b))", "int")
_op("bfe.u32", "rrrr", "bfe_u(a,b,c)", "int")
_op("bfe.s32", "rrrr", "bfe_s(a,b,c)", "int")
_op("prmt.b32", "rrrr", "prmt(a,b,c)", "int")
_op("shf.l.wrap.b32", "rrrr", "(uint32_t)(((((uint64_t)b<<32)|a)<<(c&31))>>32)", "int")
_op("shf.r.wrap.b32", "rrrr", "(uint32_t)((((uint64_t)b<<32)|a)>>(c&31))", "int")
_op("selp.b32 selp.s32 selp.u32 selp.f32 selp.b16 selp.s16 selp.u16", "rrrp", "c?a:b", "int")
_op("setp.ne.b16 setp.ne.s16 setp.ne.u16", "prr", "(a&0xffff)!=(b&0xffff)", "int")
_op("setp.eq.b16 setp.eq.s16 setp.eq.u16", "prr", "(a&0xffff)==(b&0xffff)", "int")
_op("mov.b16 mov.u16", "rr", "a", "mov")
_op("and.b16", "rrr", "a&b", "int")
_op("or.b16", "rrr", "a|b", "int")
_op("selp.b64 selp.s64 selp.u64 selp.f64", "qqqp", "c?a:b", "int")
_op("mov.b32 mov.u32 mov.s32 mov.f32", "rr", "a", "mov")
_op("mov.b64 mov.u64 mov.s64 mov.f64", "qq", "a", "mov")
_op("mov.pred", "pp", "a", "mov")
_op("cvta.shared.u64", "qq", "a+0x500000000000ull", "int")  # good for comparisons; generic loads are not known
_op("cvta.to.global.u64 cvta.global.u64", "qq", "a", "mov")  # generic addresses of global memory are the same
_op("cvt.s64.s32", "qr", f"(uint64_t){_S64}{_S32}a", "int")
_op("cvt.u64.u32", "qr", "(uint64_t)a", "int")
_op("cvt.u32.u64 cvt.s32.s64", "rq", "(uint32_t)a", "int")
_op("cvt.rn.f32.s32", "rr", f"B((float){_S32}a)", "cvt")
_op("cvt.rn.f32.u32", "rr", "B((float)a)", "cvt")
_op("cvt.rzi.s32.f32", "rr", "f2i(F(a))", "cvt")
_op("cvt.rn.bf16x2.f32", "rrr", "(bf16(a)<<16)|bf16(b)", "cvt")
_op("cvt.rn.bf16.f32", "rr", "bf16(a)", "cvt")
_op("cvt.rna.tf32.f32", "rr", "rna_tf32(a)", "cvt")
_op("add.f32x2 add.rn.f32x2", "qqq", "two(LO(a)+LO(b),HI(a)+HI(b))", "fp")
_op("sub.f32x2 sub.rn.f32x2", "qqq", "two(LO(a)-LO(b),HI(a)-HI(b))", "fp")
_op("mul.f32x2 mul.rn.f32x2", "qqq", "two(LO(a)*LO(b),HI(a)*HI(b))", "fp")
_op("fma.rn.f32x2", "qqqq", "two(fmaf(LO(a),LO(b),LO(c)),fmaf(HI(a),HI(b),HI(c)))", "fp")
for _f in ("", ".ftz"):
    _in, _out = ("Z(a)", "Z(b)", "Z(c)") if _f else ("F(a)", "F(b)", "F(c)"), "Bz" if _f else "B"
    _a, _b, _c = _in
    for _r in ("", ".rn"):
        _op(f"add{_r}{_f}.f32", "rrr", f"{_out}({_a}+{_b})", "fp")
        _op(f"sub{_r}{_f}.f32", "rrr", f"{_out}({_a}-{_b})", "fp")
        _op(f"mul{_r}{_f}.f32", "rrr", f"{_out}({_a}*{_b})", "fp")
    _op(f"fma.rn{_f}.f32", "rrrr", f"{_out}(fmaf({_a},{_b},{_c}))", "fp")
    _op(f"abs{_f}.f32", "rr", f"B(fabsf({_a}))", "fp")
    _op(f"neg{_f}.f32", "rr", f"B(-{_a})", "fp")
    _op(f"max{_f}.f32", "rrr", f"{_out}(fmaxf({_a},{_b}))", "fp")
    _op(f"min{_f}.f32", "rrr", f"{_out}(fminf({_a},{_b}))", "fp")
    # of three operands, as sm_100 has it
    OPS[f"max{_f}.f32 of 3"] = "rrrr", f"{_out}(fmaxf(fmaxf({_a},{_b}),{_c}))", "fp"
    OPS[f"min{_f}.f32 of 3"] = "rrrr", f"{_out}(fminf(fminf({_a},{_b}),{_c}))", "fp"
    _op(f"div.full{_f}.f32 div.rn{_f}.f32 div.approx{_f}.f32", "rrr", f"{_out}({_a}/{_b})", "fdiv")
    _op(f"rcp.approx{_f}.f32 rcp.rn{_f}.f32", "rr", f"{_out}(1.0f/{_a})", "mufu")
    _op(f"sqrt.approx{_f}.f32 sqrt.rn{_f}.f32", "rr", f"{_out}(sqrtf({_a}))", "mufu")
    _op(f"rsqrt.approx{_f}.f32", "rr", f"{_out}((float)(1.0/sqrt((double){_a})))", "mufu")
    _op(f"ex2.approx{_f}.f32", "rr", f"{_out}((float)exp2((double){_a}))", "mufu")
    _op(f"lg2.approx{_f}.f32", "rr", f"{_out}((float)log2((double){_a}))", "mufu")
    for _n, _e in {
        "lt": "{a}<{b}", "le": "{a}<={b}", "gt": "{a}>{b}", "ge": "{a}>={b}", "eq": "{a}=={b}",
        "ne": "({a}<{b}||{a}>{b})",
        "ltu": "!({a}>={b})", "leu": "!({a}>{b})", "gtu": "!({a}<={b})", "geu": "!({a}<{b})", "neu": "{a}!={b}",
        "equ": "!({a}<{b}||{a}>{b})", "num": "({a}=={a}&&{b}=={b})", "nan": "({a}!={a}||{b}!={b})",
    }.items():  # fmt: skip
        _op(f"setp.{_n}{_f}.f32", "prr", _e.format(a=_a, b=_b), "fp")
for _n, _e in {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}.items():  # fmt: skip
    for _s, _l, _cast in (("s32", "r", _S32), ("u32", "r", ""), ("b32", "r", "")):
        _op(f"setp.{_n}.{_s}", f"p{_l}{_l}", f"{_cast}a{_e}{_cast}b", "int")
    for _s, _l, _cast in (("s64", "q", _S64), ("u64", "q", ""), ("b64", "q", "")):
        _op(f"setp.{_n}.{_s}", f"p{_l}{_l}", f"{_cast}a{_e}{_cast}b", "int")

SPECIAL = [
    "ld.global", "st.global", "ld.shared", "st.shared", "bra", "bar", "warpsync", "ret", "fence",
    "shfl.bfly", "shfl.idx", "shfl.up", "shfl.down", "ldmatrix", "stmatrix", "mma.tf32", "mma.bf16",
    "pack", "unpack", "cp", "cp.commit", "cp.wait", "redux",
]  # fmt: skip
CODES = {name: number for number, name in enumerate([*SPECIAL, *OPS])}
CLASSES = [
    "int", "intdiv", "mov", "cvt", "fp", "fdiv", "mufu", "mma", "ldg", "stg", "lds", "sts", "ldsm", "shfl", "bar",
    "bra", "other",
]  # fmt: skip
_TYPES = {"r": "uint32_t", "q": "uint64_t"}


def cases() -> str:
    """The C switch cases of :data:`OPS`."""
    return "\n".join(f"case {CODES[name]}: /* {name} */ {_case(*of[:2])} break;" for name, of in OPS.items())


def _case(signature: str, expression: str) -> str:
    result, sources = signature[0], dict(zip("abcd", signature[1:], strict=False))
    if set(signature) == {"p"}:  # whole masks
        masks = "".join(f"uint32_t {name}=w->p[x->s[{i}]];" for i, name in enumerate(sources))
        return f"{{{masks} uint32_t t={expression.replace('!a', '~a')}; PUTP(t)}}"
    arrays = loads = ""
    for i, (name, kind) in enumerate(sources.items()):
        if kind == "p":
            arrays += f"uint32_t {name.upper()}p=w->p[x->s[{i}]];"
            loads += f"uint32_t {name}=({name.upper()}p>>l)&1;"
        else:
            arrays += f"const {_TYPES[kind]}*{name.upper()}p=w->{kind}+32*(size_t)x->s[{i}];"
            loads += f"{_TYPES[kind]} {name}={name.upper()}p[l];"
    if result == "p":
        lanes = f"uint32_t t=0; for(int l=0;l<32;l++){{{loads} t|=(uint32_t)(({expression})?1:0)<<l;}}"
    else:
        lanes = f"{_TYPES[result]} t[32]; for(int l=0;l<32;l++){{{loads} t[l]={expression};}}"
    return f"{{{arrays} {lanes} PUT{result.upper()}(t)}}"


def defines() -> str:
    """Names for the numbers of the special operations."""
    return "\n".join(f"#define OP_{name.upper().replace('.', '_')} {CODES[name]}" for name in SPECIAL)
