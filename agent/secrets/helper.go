// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/trust/wire"
)

// user is the user and group that coco-trust runs as. Nothing belongs to it.
const user = 65533

// program is the name of coco-trust in its part.
const program = "coco-trust"

// tpmDevice is the guest's TPM.
const tpmDevice = "/dev/tpm0"

// start starts coco-trust: as a user of its own, without capabilities, with the end of a socket pair, and with the TPM
// where the platform has one. In a TEE it may pass by the modes of files (CAP_DAC_OVERRIDE), because reports are made
// through files of the superuser.
func (s *Store) start(ctx context.Context) (_ *helper, err error) {
	dir, err := s.cfg.Open(ctx, contract.PartTrust)
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("connect coco-trust: %w", err)
	}
	conn, theirs := os.NewFile(uintptr(pair[0]), "coco-trust"), os.NewFile(uintptr(pair[1]), "agent")
	defer theirs.Close()
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(pair[1])},
		Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}},
	}
	switch s.cfg.Setup.TEE {
	case "tpm":
		fd, err := unix.Open(tpmDevice, unix.O_RDWR|unix.O_CLOEXEC, 0) // blocking, as package tpm2 wants it
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: tpmDevice, Err: err}
		}
		defer unix.Close(fd)
		attr.Files = append(attr.Files, uintptr(fd))
	case "snp", "tdx":
		attr.Sys.AmbientCaps = []uintptr{unix.CAP_DAC_OVERRIDE}
	}
	way, end, err := s.openWay(attr)
	if err != nil {
		return nil, err
	}
	defer end(&err)
	child, err := s.cfg.Spawn(filepath.Join(dir, program), []string{program}, attr)
	if err != nil {
		return nil, err
	}
	h := &helper{conn: conn, way: way, child: child}
	if err := h.bounded(ctx, func() error { return wire.Write(conn, s.cfg.Setup) }); err != nil {
		h.end()
		return nil, err
	}
	s.setWay(way)
	return h, nil
}

// ask sends a request and waits for its answer.
func (h *helper) ask(ctx context.Context, req wire.Request) (a wire.Answer, err error) {
	err = h.bounded(ctx, func() error {
		if err := wire.Write(h.conn, req); err != nil {
			return err
		}
		return wire.Read(h.conn, &a)
	})
	return a, err
}

// bounded talks with coco-trust until ctx is done.
func (h *helper) bounded(ctx context.Context, talk func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = h.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := talk()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("no answer of coco-trust in time: %w", context.Cause(ctx))
	case errors.Is(err, io.EOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("coco-trust has ended: %w", err)
	}
	return fmt.Errorf("coco-trust: %w", err)
}

// end closes the connection, with which coco-trust ends, and ends it where it does not.
func (h *helper) end() {
	h.once.Do(func() {
		_ = h.conn.Close() // no request waits for an answer
		if h.way != nil {
			_ = h.way.Close() // a connection that is being passed fails, and is passed to the next coco-trust
		}
		_ = h.child.Signal(syscall.SIGKILL)
		<-h.child.Done()
	})
}
