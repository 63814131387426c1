// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command twin prints what must differ between two guests that began as copies of one: a name and a value a line.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "twin:", err)
		os.Exit(1)
	}
}

func run() error {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return err
	}
	fmt.Printf("getrandom %x\n", b)
	for name, file := range map[string]string{
		"boot_id": "/proc/sys/kernel/random/boot_id", "uuid": "/proc/sys/kernel/random/uuid",
	} {
		v, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		fmt.Println(name, strings.TrimSpace(string(v)))
	}
	f, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	if _, err := f.Read(b); err != nil {
		return err
	}
	fmt.Printf("urandom %x\n", b)
	at, err := atRandom()
	if err != nil {
		return err
	}
	fmt.Printf("AT_RANDOM %x\n", at)
	fmt.Printf("hash %x\n", maphash.String(maphash.MakeSeed(), "x"))
	if err := keys(); err != nil {
		return err
	}
	isn, err := sequence()
	if err != nil {
		return err
	}
	fmt.Printf("isn %08x\n", isn)
	return nil
}

// keys makes what servers make at their first start: a key for TLS, and a host key for ssh.
func keys() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return err
	}
	fmt.Printf("tls-key %x\n", public[1:17])
	host, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	fmt.Printf("ssh-key %x\n", host)
	return nil
}

// atRandom is the value that the kernel gave this process at exec, getauxval(3).
func atRandom() ([]byte, error) {
	const tag = 25 // AT_RANDOM
	v, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return nil, err
	}
	for r := bytes.NewReader(v); ; {
		var pair [2]uint64
		if err := binary.Read(r, binary.NativeEndian, &pair); err != nil {
			return nil, fmt.Errorf("no AT_RANDOM: %w", err)
		}
		if pair[0] != tag {
			continue
		}
		m, err := os.Open("/proc/self/mem")
		if err != nil {
			return nil, err
		}
		out := make([]byte, 16)
		_, err = m.ReadAt(out, int64(pair[1])) //nolint:gosec // an address
		return out, err
	}
}

// sequence is the initial sequence number of a TCP connection from a fixed port to another one, in whose choice time
// and a secret of the kernel take part (RFC 6528). TCP_REPAIR shows it.
func sequence() (uint32, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:7000")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7001}}
	c, err := d.Dial("tcp4", "127.0.0.1:7000")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	const repair, queue, sequence, send = 19, 20, 21, 2 // TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_SEND_QUEUE
	var seq int
	cerr := raw.Control(func(fd uintptr) {
		set := func(option, value int) {
			if err == nil {
				err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, option, value)
			}
		}
		set(repair, 1)
		set(queue, send)
		if err == nil {
			size := uint32(unsafe.Sizeof(int32(0)))
			var v uint32
			_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, sequence,
				uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
			if errno != 0 {
				err = errno
			}
			seq = int(v)
		}
		set(repair, 0)
	})
	if err == nil {
		err = cerr
	}
	return uint32(seq), err //nolint:gosec // 32 bits
}
