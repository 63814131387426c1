// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package localhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/rtnl"
)

// Numbers of linux/netfilter/nf_tables.h and nfnetlink.h that x/sys does not have.
const (
	subsysNFTables = 10
	batchBegin     = 0x10
	batchEnd       = 0x11
	familyInet     = 1 // NFPROTO_INET: both IPv4 and IPv6

	msgNewTable = 0
	msgNewChain = 3
	msgNewRule  = 6

	tableOwner = 2 // NFT_TABLE_F_OWNER: the table goes with the socket that made it

	hookOutput  = 3
	priorityNAT = -100

	metaOIF     = 5
	metaL4Proto = 16
	register1   = 1

	loopbackIndex = 1 // of the loopback device in every network namespace
)

const (
	tableName = "coco-localhost"
	chainName = "output"
)

// redirect makes, in the thread's network namespace, the rule that sends TCP connections through the
// loopback device to a port of their own host. In nft's words:
//
//	table inet coco-localhost { flags owner; chain output { type nat hook output priority -100;
//	  meta l4proto tcp oif 1 redirect to :PORT } }
func redirect(port uint16) (_ *os.File, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	f := os.NewFile(uintptr(fd), "nftables")
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	const timeout = 5 // seconds
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: timeout}); err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	if err := unix.Sendto(fd, batch(port), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	if err := acknowledged(fd, 3); err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return f, nil
}

// acknowledged reads the answers to n messages.
func acknowledged(fd, n int) error {
	buf := make([]byte, 8192)
	for n > 0 {
		size, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		for b := buf[:size]; len(b) >= unix.SizeofNlMsghdr; {
			length := int(binary.NativeEndian.Uint32(b))
			if length < unix.SizeofNlMsghdr+4 || length > len(b) || binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
				return fmt.Errorf("an answer that is not understood: %w", unix.EPROTO)
			}
			if code := int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])); code != 0 { //nolint:gosec // a number with a sign
				return unix.Errno(-code) //nolint:gosec // an errno
			}
			n--
			b = b[min(len(b), (length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
		}
	}
	return nil
}

// batch is the transaction that makes table, chain and rule.
func batch(port uint16) []byte {
	hook := rtnl.Nested(4, be32(1, hookOutput), be32(2, uint32(0xffffffff+1+priorityNAT)))
	redir := rtnl.Nested(4,
		expression("meta", be32(1, register1), be32(2, metaL4Proto)),
		compare([]byte{unix.IPPROTO_TCP}),
		expression("meta", be32(1, register1), be32(2, metaOIF)),
		compare(binary.NativeEndian.AppendUint32(nil, loopbackIndex)),
		expression("immediate", be32(1, register1), value(2, binary.BigEndian.AppendUint16(nil, port))),
		expression("redir", be32(1, register1)))
	const create, appended = unix.NLM_F_CREATE, unix.NLM_F_CREATE | unix.NLM_F_APPEND
	var out []byte
	out = append(out, message(batchBegin, 0, unix.AF_UNSPEC, subsysNFTables)...)
	out = append(out, message(subsysNFTables<<8|msgNewTable, create|unix.NLM_F_ACK, familyInet, 0,
		rtnl.String(1, tableName), be32(2, tableOwner))...)
	out = append(out, message(subsysNFTables<<8|msgNewChain, create|unix.NLM_F_ACK, familyInet, 0,
		rtnl.String(1, tableName), rtnl.String(3, chainName), hook, rtnl.String(7, "nat"))...)
	out = append(out, message(subsysNFTables<<8|msgNewRule, appended|unix.NLM_F_ACK, familyInet, 0,
		rtnl.String(1, tableName), rtnl.String(2, chainName), redir)...)
	return append(out, message(batchEnd, 0, unix.AF_UNSPEC, subsysNFTables)...)
}

func message(kind, flags uint16, family byte, resource uint16, attrs ...[]byte) []byte {
	m := make([]byte, unix.SizeofNlMsghdr, 256)
	m = append(m, family, unix.NFNETLINK_V0)
	m = binary.BigEndian.AppendUint16(m, resource)
	for _, a := range attrs {
		m = append(m, a...)
	}
	binary.NativeEndian.PutUint32(m, uint32(len(m))) //nolint:gosec // a few hundred bytes
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|flags)
	return m
}

func be32(kind uint16, v uint32) []byte {
	return rtnl.Attr(kind, binary.BigEndian.AppendUint32(nil, v))
}

func value(kind uint16, v []byte) []byte { return rtnl.Nested(kind, rtnl.Attr(1, v)) }

func expression(name string, attrs ...[]byte) []byte {
	return rtnl.Nested(1, rtnl.String(1, name), rtnl.Nested(2, attrs...))
}

func compare(v []byte) []byte {
	const equal = 0
	return expression("cmp", be32(1, register1), be32(2, equal), value(3, v))
}
