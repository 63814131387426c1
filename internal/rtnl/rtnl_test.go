// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/worktest"
)

func open(t *testing.T) *Conn {
	t.Helper()
	c, err := Open(5 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func linkHeader(index uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	return b
}

func TestTheKernelAnswers(t *testing.T) {
	c := open(t)
	links, err := c.List(t.Context(), "links", unix.RTM_GETLINK, linkHeader(0))
	if err != nil || len(links) == 0 {
		t.Fatalf("List = %d links, %v", len(links), err)
	}
	lo, err := c.Get(unix.RTM_GETLINK, linkHeader(0), String(unix.IFLA_IFNAME, "lo"))
	if err != nil || lo.Type != unix.RTM_NEWLINK {
		t.Fatalf("Get(lo) = %+v, %v", lo, err)
	}
	name := ""
	for kind, v := range Attrs(lo.Body[unix.SizeofIfInfomsg:]) {
		if kind == unix.IFLA_IFNAME {
			name = Text(v)
		}
	}
	if name != "lo" {
		t.Errorf("the name of lo is %q", name)
	}
	if _, err := c.Get(unix.RTM_GETLINK, linkHeader(0), String(unix.IFLA_IFNAME, "no-such-link")); !errors.Is(err,
		unix.ENODEV) {
		t.Errorf("a link that is not there: %v, want ENODEV", err)
	}
	if err := c.Change(unix.RTM_DELLINK, 0, linkHeader(0x7ffffff0)); !errors.Is(err, unix.ENODEV) {
		t.Errorf("delete a link that is not there: %v, want ENODEV", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(unix.RTM_GETLINK, linkHeader(1)); err == nil {
		t.Error("a closed socket answers")
	}
}

// reply is a message as the kernel frames it.
func reply(kind, flags uint16, seq uint32, body []byte) []byte {
	m := request(kind, flags, seq, [][]byte{body})
	binary.NativeEndian.PutUint16(m[6:], flags)
	return append(m, make([]byte, align(len(m))-len(m))...)
}

func TestAnswers(t *testing.T) {
	done := reply(unix.NLMSG_DONE, unix.NLM_F_MULTI, 7, make([]byte, 4))
	object := reply(unix.RTM_NEWLINK, unix.NLM_F_MULTI, 7, []byte("object"))
	errno := binary.NativeEndian.AppendUint32(nil, uint32(0x1_0000_0000-int64(unix.EPERM)))
	for name, c := range map[string]struct {
		in          []byte
		objects     int
		interrupted bool
		err         error
	}{
		"a list":                 {in: append(append(object[:len(object):len(object)], object...), done...), objects: 2},
		"somebody else's answer": {in: append(reply(unix.RTM_NEWLINK, 0, 6, []byte("late")), done...)},
		"a list that changed": {
			in: append(reply(unix.RTM_NEWLINK, unix.NLM_F_DUMP_INTR, 7, nil), done...), objects: 1,
			interrupted: true,
		},
		"a refusal":                  {in: reply(unix.NLMSG_ERROR, 0, 7, errno), err: unix.EPERM},
		"nothing after the end":      {in: append(done[:len(done):len(done)], object...)},
		"shorter than a header":      {in: []byte{1, 2, 3}, err: unix.EPROTO},
		"longer than the datagram":   {in: object[:len(object)-4], err: unix.EPROTO},
		"a length below the header":  {in: make([]byte, unix.SizeofNlMsghdr), err: unix.EPROTO},
		"an end without a code":      {in: reply(unix.NLMSG_DONE, 0, 7, nil), err: unix.EPROTO},
		"a refusal without a number": {in: reply(unix.NLMSG_ERROR, 0, 7, []byte{1}), err: unix.EPROTO},
	} {
		a := answer{seq: 7}
		err := a.take(c.in)
		if !errors.Is(err, c.err) || len(a.list) != c.objects || a.interrupted != c.interrupted || err == nil && !a.done {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

func TestAttributes(t *testing.T) {
	b := append(String(3, "eth0"), Nested(5, Uint32(1, 0x01020304), Attr(2, []byte{9}))...)
	if len(b)%4 != 0 {
		t.Errorf("%d bytes: not aligned", len(b))
	}
	var got []any
	for kind, v := range Attrs(b) {
		if kind == 3 {
			got = append(got, Text(v))
			continue
		}
		for kind, v := range Attrs(v) {
			got = append(got, kind, U32(v))
		}
	}
	if len(got) != 5 || got[0] != "eth0" || got[2] != uint32(0x01020304) || got[4] != uint32(0) {
		t.Errorf("attributes: %v", got)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(reply(unix.NLMSG_DONE, 0, 7, make([]byte, 4)))
	f.Add(reply(unix.RTM_NEWLINK, 0, 7, append(linkHeader(1), Nested(18, String(1, "veth"))...)))
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Bound(t, len(in))()
		a := answer{seq: 7}
		_ = a.take(in)
		n := 0
		for _, m := range a.list {
			n += len(m.Body)
			for _, v := range Attrs(m.Body) {
				for range Attrs(v) {
				}
			}
		}
		if n > len(in) {
			t.Errorf("%d bytes out of %d", n, len(in))
		}
	})
}
