// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tpm2 speaks the few commands of a TPM 2.0 that coco needs: read and extend PCRs of the SHA-256 bank, make a
// key, quote PCRs, read and write an index of the non-volatile memory. The launcher, the guest's agent and coco-trust
// share it; a full library would double the agent's imports.
//
// Sessions are passwords that are empty, as in a TPM without an owner. Any process that can open the device may do all
// this.
//
// Source: TPM 2.0 Library, part 1 (18, structure of commands), part 2 (constants and structures), part 3 (commands).
package tpm2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// PCRs is how many PCRs the TPM of a PC has.
const PCRs = 24

// DigestSize is the length of a PCR of the SHA-256 bank.
const DigestSize = 32

const (
	tagPlain    = 0x8001 // TPM_ST_NO_SESSIONS
	tagSessions = 0x8002 // TPM_ST_SESSIONS
	passwordRS  = 0x40000009
	algSHA256   = 0x000b
	headerSize  = 10
	maxResponse = 4096 // of swtpm; the kernel's driver has the same bound
)

// Command codes (part 2, 6.5.2).
const (
	ccPCRRead   = 0x17e
	ccPCRExtend = 0x182
)

// Error is what a TPM answers in place of a result.
type Error struct{ Command, Code uint32 }

// Error names the command and the code, which part 2, 6.6.3 of the specification explains.
func (e *Error) Error() string {
	return fmt.Sprintf("the TPM refuses command %#x with code %#x", e.Command, e.Code)
}

// TPM is a connection with a TPM. It takes one command at a time, in one write, and gives the answer in one read or
// several.
type TPM struct{ rw io.ReadWriter }

// New makes a TPM of a connection that was opened.
func New(rw io.ReadWriter) TPM { return TPM{rw} }

// Open opens a device of the kernel, such as /dev/tpm0. The caller closes it.
//
// The descriptor must block. Package os would make it one that does not, with which the kernel works on a command after
// write(2) has returned, and read(2) returns nothing until the answer is there (drivers/char/tpm/tpm-dev-common.c).
func Open(path string) (TPM, io.Closer, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return TPM{}, nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	return TPM{f}, f, nil
}

// command is one request.
type command struct {
	code    uint32
	handles []uint32
	auths   int // how many of the handles want an authorisation
	params  []byte
	answers int // how many handles the answer begins with
}

// do sends a command and returns the handles and parameters of its answer.
func (t TPM) do(c command) (handles []uint32, params []byte, err error) {
	be := binary.BigEndian
	tag := uint16(tagPlain)
	var body []byte
	for _, h := range c.handles {
		body = be.AppendUint32(body, h)
	}
	if c.auths > 0 {
		tag = tagSessions
		const one = 4 + 2 + 1 + 2                         // handle, nonce, attributes, password
		body = be.AppendUint32(body, uint32(one*c.auths)) //nolint:gosec // one or two
		for range c.auths {
			body = append(be.AppendUint32(body, passwordRS), 0, 0, 0, 0, 0)
		}
	}
	body = append(body, c.params...)
	req := be.AppendUint16(nil, tag)
	req = be.AppendUint32(req, uint32(headerSize+len(body))) //nolint:gosec // far below
	req = be.AppendUint32(req, c.code)
	answer, err := t.exchange(append(req, body...))
	if err != nil {
		return nil, nil, err
	}
	if code := be.Uint32(answer[6:]); code != 0 {
		return nil, nil, &Error{c.code, code}
	}
	r := &reader{rest: answer[headerSize:]}
	for range c.answers {
		handles = append(handles, r.u32())
	}
	if c.auths > 0 {
		params = r.take(int(r.u32()))
	} else {
		params = r.rest
	}
	return handles, params, r.err
}

// exchange sends a command and receives its answer. One that the TPM could not begin is sent again.
func (t TPM) exchange(req []byte) ([]byte, error) {
	const (
		retry = 0x922 // TPM_RC_RETRY
		most  = 100
	)
	for n := 0; ; n++ {
		if _, err := t.rw.Write(req); err != nil {
			return nil, fmt.Errorf("send a command to the TPM: %w", err)
		}
		answer, err := t.receive()
		if err != nil {
			return nil, fmt.Errorf("answer of the TPM: %w", err)
		}
		if binary.BigEndian.Uint32(answer[6:]) != retry || n == most {
			return answer, nil
		}
	}
}

// receive reads one answer. A device gives it at once, a socket may give it in parts.
func (t TPM) receive() ([]byte, error) {
	b := make([]byte, maxResponse)
	n := 0
	for {
		m, err := t.rw.Read(b[n:])
		n += m
		if n >= headerSize {
			size := binary.BigEndian.Uint32(b[2:])
			if size < headerSize || size > maxResponse {
				return nil, fmt.Errorf("%d bytes, want %d to %d", size, headerSize, maxResponse)
			}
			if n >= int(size) {
				return b[:size], nil
			}
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			return nil, io.ErrUnexpectedEOF
		}
	}
}

// reader takes values from the front of an answer. The first failure sticks.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && (n < 0 || n > len(r.rest)) {
		r.err = errors.New("answer of the TPM: it is cut short")
	}
	if r.err != nil {
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// sized takes a TPM2B.
func (r *reader) sized() []byte { return r.take(int(r.u16())) }

// selection is a TPML_PCR_SELECTION of the SHA-256 bank.
func selection(pcrs ...int) []byte {
	b := []byte{0, 0, 0, 1, algSHA256 >> 8, algSHA256 & 0xff, 3, 0, 0, 0}
	for _, n := range pcrs {
		b[7+n/8] |= 1 << (n % 8)
	}
	return b
}

// PCR reads a PCR of the SHA-256 bank.
func (t TPM) PCR(n int) ([]byte, error) {
	if n < 0 || n >= PCRs {
		return nil, fmt.Errorf("PCR %d: a TPM has %d", n, PCRs)
	}
	_, params, err := t.do(command{code: ccPCRRead, params: selection(n)})
	if err != nil {
		return nil, fmt.Errorf("read PCR %d: %w", n, err)
	}
	r := &reader{rest: params}
	r.u32()                      // how often any PCR was changed
	for range min(r.u32(), 16) { // of what was read
		r.u16()
		if size := r.take(1); size != nil {
			r.take(int(size[0]))
		}
	}
	count := r.u32()
	value := r.sized()
	if r.err == nil && (count != 1 || len(value) != DigestSize) {
		return nil, fmt.Errorf("read PCR %d: the TPM has no bank SHA-256", n)
	}
	return value, r.err
}

// Extend extends a PCR of the SHA-256 bank: it becomes the hash of its value and the digest.
func (t TPM) Extend(n int, digest [DigestSize]byte) error {
	params := append([]byte{0, 0, 0, 1, algSHA256 >> 8, algSHA256 & 0xff}, digest[:]...)
	//nolint:gosec // a PCR's number
	if _, _, err := t.do(command{code: ccPCRExtend, handles: []uint32{uint32(n)}, auths: 1, params: params}); err != nil {
		return fmt.Errorf("extend PCR %d: %w", n, err)
	}
	return nil
}
