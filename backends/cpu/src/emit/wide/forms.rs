//! The table of vector instructions: prefix, opcode map, opcode and the place of each operand.
//!
//! A form is written once for AVX2 (VEX) and AVX-512 (EVEX); where the two differ in more than the prefix there are two
//! forms. Names are those of the manuals, without the leading `v`.

/// Opcode map: the bytes in front of the opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Map {
    M0F = 1,
    M0F38 = 2,
    M0F3A = 3,
}

/// The prefix that is part of the opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Prefix {
    None = 0,
    P66 = 1,
    PF3 = 2,
    PF2 = 3,
}

/// Which operand goes where. `rm` is a register or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Result, first source, second source in `rm`.
    Rvm,
    /// Result, source in `rm`.
    Rm,
    /// Result (or memory) in `rm`, source in `reg`.
    Mr,
    /// As `Mr`, with a further source (a mask) in `vvvv`.
    Mvr,
    /// Result in `vvvv`, source in `rm`; `reg` continues the opcode.
    Vm(u8),
}

/// How a form is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// VEX at AVX2, EVEX at AVX-512.
    Both,
    Vex,
    Evex,
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub name: &'static str,
    pub prefix: Prefix,
    pub map: Map,
    pub w: bool,
    /// W of the VEX form.
    pub vex_w: bool,
    pub opcode: u8,
    pub layout: Layout,
    pub encoding: Encoding,
    /// Has an immediate byte.
    pub imm: bool,
    /// Size of the elements that one element in memory can stand for (EVEX); 0: none.
    pub broadcast: u8,
    register_only: bool,
    /// Under a mask, other lanes become zero.
    pub zeroing: bool,
}

impl PartialEq for Form {
    fn eq(&self, other: &Form) -> bool {
        self.name == other.name && self.opcode == other.opcode && self.w == other.w
    }
}

const fn form(
    name: &'static str,
    prefix: Prefix,
    map: Map,
    w: u8,
    opcode: u8,
    layout: Layout,
) -> Form {
    Form {
        name,
        prefix,
        map,
        w: w == 1,
        vex_w: w == 1,
        opcode,
        layout,
        encoding: Encoding::Both,
        imm: false,
        broadcast: 0,
        register_only: false,
        zeroing: false,
    }
}

impl Form {
    const fn imm(self) -> Form {
        Form { imm: true, ..self }
    }
    const fn bc(self, broadcast: u8) -> Form {
        Form { broadcast, ..self }
    }
    const fn vex(self) -> Form {
        Form {
            encoding: Encoding::Vex,
            ..self
        }
    }
    const fn evex(self) -> Form {
        Form {
            encoding: Encoding::Evex,
            ..self
        }
    }
    /// Whether `rm` must be a register. With VEX, shifts by a constant take no memory.
    pub(super) const fn register_only(&self, evex: bool) -> bool {
        self.register_only || matches!(self.layout, Layout::Vm(_)) && !evex
    }
    /// W is 0 with VEX.
    const fn vex_w0(self) -> Form {
        Form {
            vex_w: false,
            ..self
        }
    }
    const fn reg(self) -> Form {
        Form {
            register_only: true,
            ..self
        }
    }
    const fn z(self) -> Form {
        Form {
            zeroing: true,
            ..self
        }
    }
}

use Layout::{Mr, Mvr, Rm, Rvm, Vm};
use Map::{M0F, M0F3A, M0F38};
use Prefix::{None as NP, P66, PF2, PF3};

macro_rules! forms {
    ($($name:ident = $text:literal $p:ident $m:ident $w:literal $op:literal $layout:expr $(, $more:ident($($arg:expr)?))*;)*) => {
        $(pub(super) const $name: Form = form($text, $p, $m, $w, $op, $layout)$(.$more($($arg)?))*;)*
        /// All forms, for tests.
        #[cfg(test)]
        pub(super) const ALL: &[Form] = &[$($name),*];
    };
}

forms! {
    ADDPS = "addps" NP M0F 0 0x58 Rvm, bc(4);
    ADDPD = "addpd" P66 M0F 1 0x58 Rvm, bc(8);
    SUBPS = "subps" NP M0F 0 0x5C Rvm, bc(4);
    SUBPD = "subpd" P66 M0F 1 0x5C Rvm, bc(8);
    MULPS = "mulps" NP M0F 0 0x59 Rvm, bc(4);
    MULPD = "mulpd" P66 M0F 1 0x59 Rvm, bc(8);
    DIVPS = "divps" NP M0F 0 0x5E Rvm, bc(4);
    DIVPD = "divpd" P66 M0F 1 0x5E Rvm, bc(8);
    MINPS = "minps" NP M0F 0 0x5D Rvm, bc(4);
    MINPD = "minpd" P66 M0F 1 0x5D Rvm, bc(8);
    MAXPS = "maxps" NP M0F 0 0x5F Rvm, bc(4);
    MAXPD = "maxpd" P66 M0F 1 0x5F Rvm, bc(8);
    SQRTPS = "sqrtps" NP M0F 0 0x51 Rm, bc(4);
    SQRTPD = "sqrtpd" P66 M0F 1 0x51 Rm, bc(8);
    ROUNDPS = "roundps" P66 M0F3A 0 0x08 Rm, imm(), bc(4);
    ROUNDPD = "roundpd" P66 M0F3A 1 0x09 Rm, imm(), bc(8);
    FMA132PS = "fmadd132ps" P66 M0F38 0 0x98 Rvm, bc(4);
    FMA132PD = "fmadd132pd" P66 M0F38 1 0x98 Rvm, bc(8);
    FMA213PS = "fmadd213ps" P66 M0F38 0 0xA8 Rvm, bc(4);
    FMA213PD = "fmadd213pd" P66 M0F38 1 0xA8 Rvm, bc(8);
    FMA231PS = "fmadd231ps" P66 M0F38 0 0xB8 Rvm, bc(4);
    FMA231PD = "fmadd231pd" P66 M0F38 1 0xB8 Rvm, bc(8);
    VCMPPS = "cmpps" NP M0F 0 0xC2 Rvm, imm(), vex();
    VCMPPD = "cmppd" P66 M0F 1 0xC2 Rvm, imm(), vex();
    KCMPPS = "cmpps" NP M0F 0 0xC2 Rvm, imm(), bc(4), evex();
    KCMPPD = "cmppd" P66 M0F 1 0xC2 Rvm, imm(), bc(8), evex();

    PANDD = "pandd" P66 M0F 0 0xDB Rvm, bc(4);
    PANDQ = "pandq" P66 M0F 1 0xDB Rvm, bc(8);
    PORD = "pord" P66 M0F 0 0xEB Rvm, bc(4);
    PORQ = "porq" P66 M0F 1 0xEB Rvm, bc(8);
    PXORD = "pxord" P66 M0F 0 0xEF Rvm, bc(4);
    PXORQ = "pxorq" P66 M0F 1 0xEF Rvm, bc(8);

    PADDB = "paddb" P66 M0F 0 0xFC Rvm;
    PADDW = "paddw" P66 M0F 0 0xFD Rvm;
    PADDD = "paddd" P66 M0F 0 0xFE Rvm, bc(4);
    PADDQ = "paddq" P66 M0F 1 0xD4 Rvm, bc(8);
    PSUBB = "psubb" P66 M0F 0 0xF8 Rvm;
    PSUBW = "psubw" P66 M0F 0 0xF9 Rvm;
    PSUBD = "psubd" P66 M0F 0 0xFA Rvm, bc(4);
    PSUBQ = "psubq" P66 M0F 1 0xFB Rvm, bc(8);
    PMULLW = "pmullw" P66 M0F 0 0xD5 Rvm;
    PMULLD = "pmulld" P66 M0F38 0 0x40 Rvm, bc(4);
    PMULUDQ = "pmuludq" P66 M0F 1 0xF4 Rvm, bc(8);
    PMULLQ = "pmullq" P66 M0F38 1 0x40 Rvm, bc(8), evex();
    PMINUB = "pminub" P66 M0F 0 0xDA Rvm;
    PMAXUB = "pmaxub" P66 M0F 0 0xDE Rvm;
    PMINSW = "pminsw" P66 M0F 0 0xEA Rvm;
    PMAXSW = "pmaxsw" P66 M0F 0 0xEE Rvm;
    PMINSB = "pminsb" P66 M0F38 0 0x38 Rvm;
    PMINSD = "pminsd" P66 M0F38 0 0x39 Rvm, bc(4);
    PMINSQ = "pminsq" P66 M0F38 1 0x39 Rvm, bc(8), evex();
    PMINUW = "pminuw" P66 M0F38 0 0x3A Rvm;
    PMINUD = "pminud" P66 M0F38 0 0x3B Rvm, bc(4);
    PMINUQ = "pminuq" P66 M0F38 1 0x3B Rvm, bc(8), evex();
    PMAXSB = "pmaxsb" P66 M0F38 0 0x3C Rvm;
    PMAXSD = "pmaxsd" P66 M0F38 0 0x3D Rvm, bc(4);
    PMAXSQ = "pmaxsq" P66 M0F38 1 0x3D Rvm, bc(8), evex();
    PMAXUW = "pmaxuw" P66 M0F38 0 0x3E Rvm;
    PMAXUD = "pmaxud" P66 M0F38 0 0x3F Rvm, bc(4);
    PMAXUQ = "pmaxuq" P66 M0F38 1 0x3F Rvm, bc(8), evex();
    PABSB = "pabsb" P66 M0F38 0 0x1C Rm;
    PABSW = "pabsw" P66 M0F38 0 0x1D Rm;
    PABSD = "pabsd" P66 M0F38 0 0x1E Rm, bc(4);
    PABSQ = "pabsq" P66 M0F38 1 0x1F Rm, bc(8), evex();

    PSRLW = "psrlw" P66 M0F 0 0x71 Vm(2), imm();
    PSRAW = "psraw" P66 M0F 0 0x71 Vm(4), imm();
    PSLLW = "psllw" P66 M0F 0 0x71 Vm(6), imm();
    PSRLD = "psrld" P66 M0F 0 0x72 Vm(2), imm();
    PSRAD = "psrad" P66 M0F 0 0x72 Vm(4), imm();
    PSLLD = "pslld" P66 M0F 0 0x72 Vm(6), imm();
    PSRLQ = "psrlq" P66 M0F 1 0x73 Vm(2), imm();
    PSRAQ = "psraq" P66 M0F 1 0x72 Vm(4), imm(), evex();
    PSLLQ = "psllq" P66 M0F 1 0x73 Vm(6), imm();
    PSRLDQ = "psrldq" P66 M0F 0 0x73 Vm(3), imm();
    PSRLVD = "psrlvd" P66 M0F38 0 0x45 Rvm, bc(4);
    PSRLVQ = "psrlvq" P66 M0F38 1 0x45 Rvm, bc(8);
    PSRAVD = "psravd" P66 M0F38 0 0x46 Rvm, bc(4);
    PSRAVQ = "psravq" P66 M0F38 1 0x46 Rvm, bc(8), evex();
    PSLLVD = "psllvd" P66 M0F38 0 0x47 Rvm, bc(4);
    PSLLVQ = "psllvq" P66 M0F38 1 0x47 Rvm, bc(8);
    PSRLVW = "psrlvw" P66 M0F38 1 0x10 Rvm, evex();
    PSRAVW = "psravw" P66 M0F38 1 0x11 Rvm, evex();
    PSLLVW = "psllvw" P66 M0F38 1 0x12 Rvm, evex();

    PCMPEQB = "pcmpeqb" P66 M0F 0 0x74 Rvm, vex();
    PCMPEQW = "pcmpeqw" P66 M0F 0 0x75 Rvm, vex();
    PCMPEQD = "pcmpeqd" P66 M0F 0 0x76 Rvm, vex();
    PCMPEQQ = "pcmpeqq" P66 M0F38 0 0x29 Rvm, vex();
    PCMPGTB = "pcmpgtb" P66 M0F 0 0x64 Rvm, vex();
    PCMPGTW = "pcmpgtw" P66 M0F 0 0x65 Rvm, vex();
    PCMPGTD = "pcmpgtd" P66 M0F 0 0x66 Rvm, vex();
    PCMPGTQ = "pcmpgtq" P66 M0F38 0 0x37 Rvm, vex();
    KCMPB = "pcmpb" P66 M0F3A 0 0x3F Rvm, imm(), evex();
    KCMPW = "pcmpw" P66 M0F3A 1 0x3F Rvm, imm(), evex();
    KCMPD = "pcmpd" P66 M0F3A 0 0x1F Rvm, imm(), bc(4), evex();
    KCMPQ = "pcmpq" P66 M0F3A 1 0x1F Rvm, imm(), bc(8), evex();
    KCMPUB = "pcmpub" P66 M0F3A 0 0x3E Rvm, imm(), evex();
    KCMPUW = "pcmpuw" P66 M0F3A 1 0x3E Rvm, imm(), evex();
    KCMPUD = "pcmpud" P66 M0F3A 0 0x1E Rvm, imm(), bc(4), evex();
    KCMPUQ = "pcmpuq" P66 M0F3A 1 0x1E Rvm, imm(), bc(8), evex();

    KBLENDPS = "blendmps" P66 M0F38 0 0x65 Rvm, bc(4), evex();
    KBLENDPD = "blendmpd" P66 M0F38 1 0x65 Rvm, bc(8), evex();
    KBLENDB = "pblendmb" P66 M0F38 0 0x66 Rvm, evex();
    KBLENDW = "pblendmw" P66 M0F38 1 0x66 Rvm, evex();
    KBLENDD = "pblendmd" P66 M0F38 0 0x64 Rvm, bc(4), evex();
    KBLENDQ = "pblendmq" P66 M0F38 1 0x64 Rvm, bc(8), evex();
    BLENDVPS = "blendvps" P66 M0F3A 0 0x4A Rvm, imm(), vex();
    BLENDVPD = "blendvpd" P66 M0F3A 0 0x4B Rvm, imm(), vex();
    PBLENDVB = "pblendvb" P66 M0F3A 0 0x4C Rvm, imm(), vex();

    KMOV_KR = "kmovq" PF2 M0F 1 0x92 Rm, vex(), reg();
    KMOV_RK = "kmovq" PF2 M0F 1 0x93 Rm, vex(), reg();
    KMOV_KM = "kmovq" NP M0F 1 0x90 Rm, vex();
    KMOV_MK = "kmovq" NP M0F 1 0x91 Mr, vex();
    KMOVB = "kmovb" P66 M0F 0 0x90 Rm, vex(), reg();
    KMOVW = "kmovw" NP M0F 0 0x90 Rm, vex(), reg();
    KMOVD = "kmovd" P66 M0F 1 0x90 Rm, vex(), reg();
    KNOTB = "knotb" P66 M0F 0 0x44 Rm, vex(), reg();
    KNOTW = "knotw" NP M0F 0 0x44 Rm, vex(), reg();
    KNOTD = "knotd" P66 M0F 1 0x44 Rm, vex(), reg();
    KNOTQ = "knotq" NP M0F 1 0x44 Rm, vex(), reg();
    KAND = "kandq" NP M0F 1 0x41 Rvm, vex(), reg();
    KOR = "korq" NP M0F 1 0x45 Rvm, vex(), reg();
    KXOR = "kxorq" NP M0F 1 0x47 Rvm, vex(), reg();
    KSHIFTR = "kshiftrq" P66 M0F3A 1 0x31 Rm, imm(), vex(), reg();
    KSHIFTL = "kshiftlq" P66 M0F3A 1 0x33 Rm, imm(), vex(), reg();

    PMOVSXBW = "pmovsxbw" P66 M0F38 0 0x20 Rm;
    PMOVSXBD = "pmovsxbd" P66 M0F38 0 0x21 Rm;
    PMOVSXBQ = "pmovsxbq" P66 M0F38 0 0x22 Rm;
    PMOVSXWD = "pmovsxwd" P66 M0F38 0 0x23 Rm;
    PMOVSXWQ = "pmovsxwq" P66 M0F38 0 0x24 Rm;
    PMOVSXDQ = "pmovsxdq" P66 M0F38 0 0x25 Rm;
    PMOVZXBW = "pmovzxbw" P66 M0F38 0 0x30 Rm;
    PMOVZXBD = "pmovzxbd" P66 M0F38 0 0x31 Rm;
    PMOVZXBQ = "pmovzxbq" P66 M0F38 0 0x32 Rm;
    PMOVZXWD = "pmovzxwd" P66 M0F38 0 0x33 Rm;
    PMOVZXWQ = "pmovzxwq" P66 M0F38 0 0x34 Rm;
    PMOVZXDQ = "pmovzxdq" P66 M0F38 0 0x35 Rm;
    PMOVWB = "pmovwb" PF3 M0F38 0 0x30 Mr, evex();
    PMOVDB = "pmovdb" PF3 M0F38 0 0x31 Mr, evex();
    PMOVQB = "pmovqb" PF3 M0F38 0 0x32 Mr, evex();
    PMOVDW = "pmovdw" PF3 M0F38 0 0x33 Mr, evex();
    PMOVQW = "pmovqw" PF3 M0F38 0 0x34 Mr, evex();
    PMOVQD = "pmovqd" PF3 M0F38 0 0x35 Mr, evex();

    CVTDQ2PS = "cvtdq2ps" NP M0F 0 0x5B Rm, bc(4);
    CVTTPS2DQ = "cvttps2dq" PF3 M0F 0 0x5B Rm, bc(4);
    CVTPS2PD = "cvtps2pd" NP M0F 0 0x5A Rm;
    CVTPD2PS = "cvtpd2ps" P66 M0F 1 0x5A Rm, bc(8);
    CVTDQ2PD = "cvtdq2pd" PF3 M0F 0 0xE6 Rm;
    CVTTPD2DQ = "cvttpd2dq" P66 M0F 1 0xE6 Rm, bc(8);
    CVTUDQ2PS = "cvtudq2ps" PF2 M0F 0 0x7A Rm, bc(4), evex();
    CVTUDQ2PD = "cvtudq2pd" PF3 M0F 0 0x7A Rm, evex();
    CVTTPS2UDQ = "cvttps2udq" NP M0F 0 0x78 Rm, bc(4), evex();
    CVTTPD2UDQ = "cvttpd2udq" NP M0F 1 0x78 Rm, bc(8), evex();
    CVTQQ2PS = "cvtqq2ps" NP M0F 1 0x5B Rm, bc(8), evex();
    CVTUQQ2PS = "cvtuqq2ps" PF2 M0F 1 0x7A Rm, bc(8), evex();
    CVTQQ2PD = "cvtqq2pd" PF3 M0F 1 0xE6 Rm, bc(8), evex();
    CVTUQQ2PD = "cvtuqq2pd" PF3 M0F 1 0x7A Rm, bc(8), evex();
    CVTTPD2QQ = "cvttpd2qq" P66 M0F 1 0x7A Rm, bc(8), evex();
    CVTTPD2UQQ = "cvttpd2uqq" P66 M0F 1 0x78 Rm, bc(8), evex();
    CVTPH2PS = "cvtph2ps" P66 M0F38 0 0x13 Rm;
    CVTPS2PH = "cvtps2ph" P66 M0F3A 0 0x1D Mr, imm();
    CVTTSD2SI = "cvttsd2si" PF2 M0F 1 0x2C Rm;
    CVTSI2SS = "cvtsi2ss" PF3 M0F 1 0x2A Rvm;
    CVTSI2SD = "cvtsi2sd" PF2 M0F 1 0x2A Rvm;

    BROADCASTB = "pbroadcastb" P66 M0F38 0 0x78 Rm;
    BROADCASTW = "pbroadcastw" P66 M0F38 0 0x79 Rm;
    BROADCASTD = "pbroadcastd" P66 M0F38 0 0x58 Rm;
    BROADCASTQ = "pbroadcastq" P66 M0F38 1 0x59 Rm, vex_w0();
    MOVUPS = "movups" NP M0F 0 0x10 Rm, z();
    MOVUPD = "movupd" P66 M0F 1 0x10 Rm, z();
    MOVDQU8 = "movdqu8" PF2 M0F 0 0x6F Rm, evex(), z();
    MOVDQU16 = "movdqu16" PF2 M0F 1 0x6F Rm, evex(), z();
    ST_UPS = "movups" NP M0F 0 0x11 Mr;
    ST_UPD = "movupd" P66 M0F 1 0x11 Mr;
    ST_DQU8 = "movdqu8" PF2 M0F 0 0x7F Mr, evex();
    ST_DQU16 = "movdqu16" PF2 M0F 1 0x7F Mr, evex();
    ST_NTPS = "movntps" NP M0F 0 0x2B Mr;
    LD_SS = "movss" PF3 M0F 0 0x10 Rm;
    LD_SD = "movsd" PF2 M0F 1 0x10 Rm;
    ST_SS = "movss" PF3 M0F 0 0x11 Mr;
    ST_SD = "movsd" PF2 M0F 1 0x11 Mr;
    MOVD_XR = "movd" P66 M0F 0 0x6E Rm;
    MOVQ_XR = "movq" P66 M0F 1 0x6E Rm;
    MOVD_RX = "movd" P66 M0F 0 0x7E Mr;
    MOVQ_RX = "movq" P66 M0F 1 0x7E Mr;
    PMASKLDD = "pmaskmovd" P66 M0F38 0 0x8C Rvm, vex();
    PMASKLDQ = "pmaskmovq" P66 M0F38 1 0x8C Rvm, vex();
    PMASKSTD = "pmaskmovd" P66 M0F38 0 0x8E Mvr, vex();
    PMASKSTQ = "pmaskmovq" P66 M0F38 1 0x8E Mvr, vex();
    PINSRB = "pinsrb" P66 M0F3A 0 0x20 Rvm, imm();
    PINSRW = "pinsrw" P66 M0F 0 0xC4 Rvm, imm();
    PINSRD = "pinsrd" P66 M0F3A 0 0x22 Rvm, imm();
    PINSRQ = "pinsrq" P66 M0F3A 1 0x22 Rvm, imm();
    PEXTRB = "pextrb" P66 M0F3A 0 0x14 Mr, imm();
    PEXTRW = "pextrw" P66 M0F3A 0 0x15 Mr, imm();
    PEXTRD = "pextrd" P66 M0F3A 0 0x16 Mr, imm();
    PEXTRQ = "pextrq" P66 M0F3A 1 0x16 Mr, imm();
    INSERT128 = "inserti128" P66 M0F3A 0 0x38 Rvm, imm();
    INSERT256 = "inserti64x4" P66 M0F3A 1 0x3A Rvm, imm(), evex();
    EXTRACT128 = "extracti128" P66 M0F3A 0 0x39 Mr, imm();
    EXTRACT256 = "extracti64x4" P66 M0F3A 1 0x3B Mr, imm(), evex();
    SHUFPS = "shufps" NP M0F 0 0xC6 Rvm, imm();
    PERMQ = "permq" P66 M0F3A 1 0x00 Rm, imm();
    PUNPCKLQDQ = "punpcklqdq" P66 M0F 1 0x6C Rvm;
    PACKSSDW = "packssdw" P66 M0F 0 0x6B Rvm;
    PACKSSWB = "packsswb" P66 M0F 0 0x63 Rvm;
    PACKUSDW = "packusdw" P66 M0F38 0 0x2B Rvm;
    PACKUSWB = "packuswb" P66 M0F 0 0x67 Rvm;
    MOVMSKPS = "movmskps" NP M0F 0 0x50 Rm, vex(), reg();
    MOVMSKPD = "movmskpd" P66 M0F 0 0x50 Rm, vex(), reg();
    PMOVMSKB = "pmovmskb" P66 M0F 0 0xD7 Rm, vex(), reg();
}
