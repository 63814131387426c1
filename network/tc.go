// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/rtnl"
)

// A redirect in traffic control is an ingress qdisc with one u32 filter, whose action is mirred. Numbers are those
// of linux/pkt_sched.h, pkt_cls.h and tc_act/tc_mirred.h.
const (
	ingressHandle = 0xffff0000 // ffff:, below which an ingress qdisc's filters hang
	ingressParent = 0xfffffff1 // TC_H_INGRESS

	// priority of our filters. It is also the mark by which a redirect of an earlier VM is known.
	priority = 0xc0c0

	tcaKind, tcaOptions = 1, 2

	u32Sel, u32Act = 5, 7 // TCA_U32_SEL, TCA_U32_ACT
	u32Terminal    = 1    // TC_U32_TERMINAL

	actKind, actOptions = 1, 2
	mirredParms         = 2 // TCA_MIRRED_PARMS
	actStolen           = 4 // TC_ACT_STOLEN
	egressRedirect      = 1 // TCA_EGRESS_REDIR

	sizeofTcMsg = 20
)

// tcHeader is struct tcmsg.
func tcHeader(link int, handle, parent, info uint32) []byte {
	b := make([]byte, 4, sizeofTcMsg)                                // family and padding
	for _, v := range []uint32{uint32(link), handle, parent, info} { //nolint:gosec // an index
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

func ingressQdisc(link int) [][]byte {
	return [][]byte{tcHeader(link, ingressHandle, ingressParent, 0), rtnl.String(tcaKind, "ingress")}
}

// redirectFilter sends every frame that enters by from out of to.
func redirectFilter(from, to int) [][]byte {
	everything := make([]byte, 16+16) // struct tc_u32_sel with one key that compares nothing
	everything[0], everything[2] = u32Terminal, 1
	mirred := make([]byte, 28) // struct tc_mirred
	binary.NativeEndian.PutUint32(mirred[8:], actStolen)
	binary.NativeEndian.PutUint32(mirred[20:], egressRedirect)
	binary.NativeEndian.PutUint32(mirred[24:], uint32(to)) //nolint:gosec // an index
	return [][]byte{
		tcHeader(from, 0, ingressHandle, priority<<16|uint32(bits.ReverseBytes16(unix.ETH_P_ALL))),
		rtnl.String(tcaKind, "u32"),
		rtnl.Nested(tcaOptions, rtnl.Attr(u32Sel, everything),
			rtnl.Nested(u32Act, rtnl.Nested(1, rtnl.String(actKind, "mirred"),
				rtnl.Nested(actOptions, rtnl.Attr(mirredParms, mirred))))),
	}
}

// tcObject is a qdisc or a filter: its link, kind and, for a filter, priority.
type tcObject struct {
	link     int
	kind     string
	priority uint32
}

func parseTC(b []byte) (o tcObject, ok bool) {
	if len(b) < sizeofTcMsg {
		return o, false
	}
	o.link, o.priority = int(rtnl.U32(b[4:])), rtnl.U32(b[16:])>>16
	for kind, v := range rtnl.Attrs(b[sizeofTcMsg:]) {
		if kind == tcaKind {
			o.kind = rtnl.Text(v)
		}
	}
	return o, true
}
