// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cotrust starts the program coco-trust, a part of the guest image, and talks with it over a socket pair
// (package trust/wire). Whoever starts it ends it.
package cotrust

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/reap"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/trust/wire"
)

// User is the user and group that coco-trust runs as. Nothing belongs to it but what it is given.
const User = 65533

// Name is that of the program in its part.
const Name = "coco-trust"

// tpmDevice is the guest's TPM.
const tpmDevice = "/dev/tpm0"

// Config has what a start needs.
type Config struct {
	// Open mounts a part of the guest image and returns its directory.
	Open func(ctx context.Context, part string) (dir string, err error)
	// Spawn starts a program; the reaper's method.
	Spawn func(path string, argv []string, attr *syscall.ProcAttr) (*reap.Child, error)
}

// Program is a coco-trust that runs.
type Program struct {
	conn  *os.File
	child *reap.Child
	once  sync.Once
}

// Start starts coco-trust: as a user of its own, without capabilities, with the end of a socket pair, with the TPM
// where the platform has one and it talks with a broker, and with the descriptor wire.API if way is not nil, which
// stays open here. In a TEE it may pass by the modes of files (CAP_DAC_OVERRIDE), because reports are made through
// files of the superuser.
func Start(ctx context.Context, cfg Config, setup wire.Setup, way *os.File) (_ *Program, err error) {
	dir, err := cfg.Open(ctx, contract.PartTrust)
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
		Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: User, Gid: User}},
	}
	switch {
	case setup.Pull != nil:
	case setup.TEE == "tpm":
		fd, err := unix.Open(tpmDevice, unix.O_RDWR|unix.O_CLOEXEC, 0) // blocking, as package tpm2 wants it
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: tpmDevice, Err: err}
		}
		defer unix.Close(fd)
		attr.Files = append(attr.Files, uintptr(fd))
	case setup.TEE == "snp", setup.TEE == "tdx":
		attr.Sys.AmbientCaps = []uintptr{unix.CAP_DAC_OVERRIDE}
	}
	if way != nil {
		for len(attr.Files) < wire.API {
			attr.Files = append(attr.Files, ^uintptr(0)) // closed there
		}
		attr.Files = append(attr.Files, way.Fd())
	}
	child, err := cfg.Spawn(filepath.Join(dir, Name), []string{Name}, attr)
	if err != nil {
		return nil, err
	}
	p := &Program{conn: conn, child: child}
	if err := p.Talk(ctx, func(c io.ReadWriter) error { return wire.Write(c, setup) }); err != nil {
		p.End()
		return nil, err
	}
	return p, nil
}

// Talk talks with coco-trust until ctx is done.
func (p *Program) Talk(ctx context.Context, talk func(io.ReadWriter) error) error {
	stop := context.AfterFunc(ctx, func() { _ = p.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := talk(p.conn)
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

// End closes the connection, with which coco-trust ends, and ends it where it does not. It may be called again.
func (p *Program) End() {
	p.once.Do(func() {
		_ = p.conn.Close() // nobody waits for an answer
		_ = p.child.Signal(syscall.SIGKILL)
		<-p.child.Done()
	})
}
