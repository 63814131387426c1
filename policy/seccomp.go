// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"

	"github.com/coco-shim/coco/api/agent"
)

// SeccompDigest is what Linux.Seccomp has for a filter: the SHA-256 of all its fields in the order of the protocol,
// each number in 64 little-endian bits, each list and text after its length. Without a filter it is NoSeccomp.
func SeccompDigest(s *agent.LinuxSeccomp) string {
	if s == nil {
		return NoSeccomp
	}
	d := digester{sha256.New()}
	d.text(s.DefaultAction)
	d.texts(s.Architectures)
	d.texts(s.Flags)
	d.optional(s.DefaultErrnoRet)
	d.number(uint64(len(s.Syscalls)))
	for _, c := range s.Syscalls {
		d.texts(c.GetNames())
		d.text(c.GetAction())
		var errno *uint32
		if e, ok := c.GetErrnoRet().(*agent.LinuxSyscall_Errnoret); ok {
			errno = &e.Errnoret
		}
		d.optional(errno)
		d.number(uint64(len(c.GetArgs())))
		for _, a := range c.GetArgs() {
			d.number(a.GetIndex())
			d.number(a.GetValue())
			d.number(a.GetValueTwo())
			d.text(a.GetOp())
		}
	}
	return "sha256:" + hex.EncodeToString(d.Sum(nil))
}

// digester adds values to a hash so that no two sequences of values give the same bytes.
type digester struct{ hash.Hash }

func (d digester) number(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	_, _ = d.Write(b[:]) // a hash takes everything
}

func (d digester) text(s string) {
	d.number(uint64(len(s)))
	_, _ = d.Write([]byte(s))
}

func (d digester) texts(list []string) {
	d.number(uint64(len(list)))
	for _, s := range list {
		d.text(s)
	}
}

func (d digester) optional(n *uint32) {
	if n == nil {
		d.number(0)
		return
	}
	d.number(1)
	d.number(uint64(*n))
}
