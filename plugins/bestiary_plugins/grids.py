"""The grids of ggml's IQ types: what 4 or 8 weights beside one another may be, up to scale and signs.

A grid is a choice among all points whose coordinates are places in a short list of numbers: ggml's authors kept those
that weights are often near to. Its codes count the points kept in the order of all points, the first coordinate
changing fastest. So a grid is a bit for each point, kept or not, lowest bit first: below in base 85. Where no point
with an odd sum of places was kept, those have no bits. (The facts are those of ggml-common.h, where the same points are
written out as numbers of 32 and 64 bits; the tests compare them all with the `gguf` package's.)
"""

from __future__ import annotations

import base64
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Grid(NamedTuple):
    """numbers: what a coordinate can be. size: coordinates of a point. even: no point has an odd sum of places."""

    numbers: tuple[int, ...]
    size: int
    even: bool
    kept: str


IQ1 = Grid((-1, 0, 1), 8, False, (
    "RV5UKpaMcs2t_fdh9HWf8VD*N6opU}f*?diB^3pr0)ilj7yt-@paUwPh`Xu^kg5v+A^-"
    "}ijDnyDKv4)qA&7ub6hcu5iZBS6pa_5}2t^?jg&;^mRR~1^EW)55iY5RmB&e#Q2;#2@2q-"
    "83paMcDswg0+fFKH+2)VkbAj+<ZqOPhseCz7EyMhk5BD%`c4w3>Q03sl$in<Dd0tf&qO5mb9A|NZG0D(Y(s){HGA^{YIP!)n82}L1Pg`fxmB"
    "d9tcgn}ScLQx2!APALE6ap#;xTu1FphyBB2!f($q5>$ZDhP!j2!b#OML+;WAryt6076j!MFA;-"
    "0E&Vt2%#_(1yB@%C<sL%6onuH0wAg?03Z^vimoWAx}mD5Z~%e|2m&Y~0)zm907!tK>aZ%R!XS&fBI??wi;HfklCUbOa*K*Y3@RW<gg_{YDhR"
    "3|$jqW5qOY2u=%@k!0stzghyWmfpo^lSD7v74f-(xazPP&n>!P45q6mr#DC(jBp)vvt`lRaK?<=S-jlO>C`uBgo=6$-"
    "}Y5OPtzb5(;>EVhZ5URcogsKR#s0)Iw|GFgUgMb8LENJqm3ZyFl0xAdy;;Iq=0)i?ErXb0JiI9RQ0HOelfD-_M2nYadimIx+0;ax-pvnS(Yn"
    "Lw2vgr_l5H70TC>7DA1ON(x0E&Vj2mzrWf~q;XA~J-a34j;?ilSlyffPhh07W6Jf>0DfQ3$FaD5{4F5-"
    "JEqAru9m2trW^MFAiJpg^J`0Ehqxq6lh=Zn&zdfB+y0g5t;`AqYfJ6hcu6iXat*P!xs=2&yV7fB*_YQ3ypLr~ptDLQx3fAc%qr7=kJYs-mij"
    "u!{l;DykqTf`F<DC<rJ3sfYq1puP(zxCn~6OR}#2x}^B7svuG*Xttm*=70(UC<r2IVt^nD0;;Mjs_LStprQx}5Fnt6A^?I807W4bg`f&RQ3y"
    "pLsRjT_ssae501ypC6oM!SMIjUg00@GDtnwfL0062AC<?kD>Y@Swf=CG{=@bAFOGQxtMFFS+P!vK@2#6#Ih$sp`2mnO^6a}CHKv4)q0R"))
IQ2_XXS = Grid((8, 25, 43), 8, True, (
    "fA*xAAf`Y7AP5Es03ZNNm<3^iEC>WJ1i%0RfB<QNW&i>p00IC2AOrva0ANA{2vQ(HfCvEq03iSXK!Sn*0sue&KmdS1000006CeNx00jU501y"
    "BG2mk;k00A)o06+u)01N;C005W(fdBvq00IaA000002!J2}03ZMW0000001yBGz@$kOCP07yAPRs8fCvGA1OWg91Rw+e000310000cKmh;%0"
    "sufE0000200N{803ZPn00IC20RR912mk;802lxP0000W00031AS3`F0000800002000002@n7QfB*mp004jhKmY&*00000U;qFh000000000"
    "00RR9100000000000GI#*fB+x}0ssI20ssI2U<w2X03ZM$06+i&2oL~(0000000961000mG0000IBme*qfB*mp000010006A0RR9101yBG00"
    "00000000KmY&`0000000000AOJuB0ssL3001BW00000AOHXW00000000000000000IC20ssI2000000000"))
IQ2_XS = Grid((8, 25, 43), 8, True, (
    "|KGoP8~)FmGy&d(DG&ktn|EOXya^K`0GL1nfB^VYCP9EW0Rn&o5Fh~nK;hrKi4)*Wm;k}R1qcuTz?-"
    "l^0)Pn+004j>00961Gav{c00jU50ssI22mk>8gb5HJOn?Lg00a;KAOM<x0RR99073vj5D)+W0F)sB0R#d706-"
    "7`K>z?6z`yxZCcv980Sbs27ytl(w_ySV0TUzu00<F)1ONagKoJ1|LI4Q}00;m8006v66CePX0s{a52mk~C05~B6gaDBM0DuGlKmb4hA_#~80"
    "0BT400000000Pp2@pgOzyJUM000040ssMl00000AV2{CKmY&$000C401yBGAOHXWAOJuF0C*E8zyN#!LIMB~AOL^?X$}Mk2p|9u000Oe0003"
    "%0s;^QAOZjY0000203<>aAP^7$0R#X60000WfB*^rNdN!<KmY&+000310000W000625C8xG1ONm8upt5f0097i1OR9O1ONd700;np0000000"
    "000fB*sr3jhE}0ssIo001xm0099"))
IQ2_S = Grid((8, 25, 43), 8, True, (
    "|KGoVQ~%BTHfP?%FHlAN`~T<L{BQr}P51(B!UT9<|4k7%FWQ6%5Jp1)fZ*S~f7j;!`!{dEmMH@!!29-Z-h_YiCQN`fVFCnz-"
    "{MUe0B^zs1Rx|pAOHZ~*Etde&WST&0z}Xf00a6qZ^8s<6DCjqFaZJr08j=@00?jb002M$f&d^G!2kPyrp^2FZ{CD?(k2Xm|L@<t3IFCzoB(g"
    "a1PDO(&6^+r-"
    "h>Gd2uy$g006vy|K<(&H*dlOXcH!20Pt_#gbDB_On?Aj0tEm7;7yna0l)+Z002Nh000P}d($RJfHz?R1OyTw5C9Nu!UPBaCO`xP0s;U400c|"
    "`00a;OfB*mh00062fOuQxMH#Sf-hc^M2TT9};9tB66W~pl01?0h3;+N?8886=hyf6Q00002FbEL)<V~0WWxzxL046{H0D#_v2@nWOfB*nc1O"
    "NmC0GL1l000aCPyhe`00008P(@Av01^NMAOJvu1^^n+1PA~SNI(Dp000000ssIA2mk;O000Oe02mekKmY*"))
IQ3_XXS = Grid((4, 12, 20, 28, 36, 44, 52, 62), 4, True, (
    "w-W+jGc`dF7qgH+IRpR@Ab^Bm2_PT<06+i)&;SAfGjkXK69WJMGZ6qF0}%)a1pp8L00jsT1ONa400IF3GaCW`HxU3DlY>D3Q2+o?06-"
    "uB0tf*>00000g8&2oF#`}J0}%`W69gb25Fh{m01yZu2?9U>K!5-"
    "O03ZMXgutKx0000$0D%Ds2mk~C1ON~O00aUM00000G!Os)AOHan2?#&{Kp+4h0stTY5DEYw0uTTI000mG00aU600ayK00962fB*ml0FVFx00"
    "0C41OOla03ZMW0s#O39v~n900;p9AOIu)K_CDD009920|Wp701yBG00000"))
IQ3_S = Grid((1, 3, 5, 7, 9, 11, 13, 15), 4, False, (
    "r&l8gr3wX-7bA%x5C9?sqe&tWqzV8D2qFba5CwoD0f-"
    "U=2?78C6aYmCq5wb$Knef?00aO66#zvD01*HH7pnzQ08j!1OA!JI0tEm;0i+QG2_OLkk_mzl0ssU7C=>t+L=gZ00to^I00IC2005ByPyhe`3"
    "Izfn0ssU7t5u2xDg}Tk1&JgQ1Ofm6k^l;U0*C+-"
    "B?1%*1OY$*f&d950ssIc5CQ~%0SEvAg#ZEo03ZSYAOb)E2mt^91gZoolmZ9>Di8_)0RRC+0R#aQ009610uhP<iXZ?82tot`00a>L0tFxh5I_"
    "J306+i$0ssI23IGKl000005d@J00s#O4gbD;92qFLg3Lydr0e}Pn5DEn%000001pp9$0RR93pa22@000C400;mO0003103iSY2m$~A1Q7%Pk"
    "pw^xDg*)q000040Rjj?00;m8gaLp65CR|w5&!`NKmY&$00ck)015yA000001ONa46aWMO0000004e|q000310RVvj000mG00aOK1Rw+f0T2Q"
    "J0RR91001BW2mk~C2><{P00031AOHXW0RR91015yA00000kpKli0T2WL1OgBMC;$Ke5<vn100IC21ONae00;m8A_xHh00961000C41ONa41O"
    "Na6000000RR9100000"))


@cache
def points(grid: Grid) -> NDArray[np.int8]:
    """The points in the order of their codes, (codes, size)."""
    places = np.indices((len(grid.numbers),) * grid.size).reshape(grid.size, -1)[::-1].T
    if grid.even:
        places = places[places.sum(axis=1) % 2 == 0]
    kept = np.unpackbits(np.frombuffer(base64.b85decode(grid.kept), np.uint8), count=len(places), bitorder="little")
    chosen: NDArray[np.int8] = np.array(grid.numbers, np.int8)[places[kept.astype(bool)]]
    return chosen
