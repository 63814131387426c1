// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/guest"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu"
	"github.com/coco-shim/coco/tests/harness"
)

const streamSize = 256 << 20

// benchStream is figure 4: a container's streams against the bare virtio-serial port.
func benchStream(ctx context.Context, b *bench) ([]Figure, error) {
	raw, err := startRaw(ctx, b.dir)
	if err != nil {
		return nil, fmt.Errorf("raw channel: %w", err)
	}
	defer raw.stop()
	id, remove, err := b.detached(ctx, harness.Runtime)
	if err != nil {
		return nil, err
	}
	defer remove()
	var out, in, rawOut, rawIn []float64
	for range max(b.runs/2, 2) {
		for _, m := range []struct {
			dst *[]float64
			run func() (float64, error)
		}{
			{&rawOut, raw.out},
			{&out, func() (float64, error) {
				return b.throughput(ctx, streamSize, nil, "task", "exec", "--exec-id", b.id(), id, "dd", "if=/dev/zero", "bs=64k",
					fmt.Sprintf("count=%d", streamSize>>16), "status=none")
			}},
			{&rawIn, raw.in},
			{&in, func() (float64, error) {
				return b.throughput(ctx, streamSize, io.LimitReader(zeros{}, streamSize), "task", "exec", "--exec-id", b.id(), id,
					"dd", "of=/dev/null", "bs=64k", "status=none")
			}},
		} {
			v, err := m.run()
			if err != nil {
				return nil, err
			}
			*m.dst = append(*m.dst, v)
		}
	}
	return []Figure{
		against("stream", "stdout, 256 MiB", "MiB/s", "≥ 0.5", out, "raw virtio-serial", rawOut),
		against("stream", "stdin, 256 MiB", "MiB/s", "", in, "raw virtio-serial", rawIn),
	}, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// rawVM is a VM that moves bytes over the bare port.
type rawVM struct {
	cmd  *exec.Cmd
	conn net.Conn
	r    *bufio.Reader
}

func startRaw(ctx context.Context, dir string) (_ *rawVM, err error) {
	initrd, err := rawInitrd(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer initrd.Close()
	spec, release, err := bareSpec()
	if err != nil {
		return nil, err
	}
	defer release()
	spec.ID, spec.Boot.Initrd, spec.Accel = "bench-raw", initrd, hypervisor.AccelTCG
	var ours, theirs [3]*os.File
	for i := range ours {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		ours[i], theirs[i] = os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
		defer theirs[i].Close()
	}
	c := qemu.Build(spec, qemu.Params{
		Binary: configs.Default().Hypervisor.Path, Agent: theirs[0], Control: theirs[1],
		Console: theirs[2],
	})
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.ExtraFiles, cmd.Stderr = c.Files, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(ours[0])
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	for i, f := range ours {
		if i == 0 {
			_ = f.Close() // conn has a duplicate
			continue
		}
		go func() { _, _ = io.Copy(io.Discard, f); _ = f.Close() }() // ends with QEMU
	}
	vm := &rawVM{cmd: cmd, conn: conn, r: bufio.NewReaderSize(conn, 256<<10)}
	if err := startGuest(ours[1]); err != nil {
		vm.stop()
		return nil, err
	}
	if line, err := vm.r.ReadString('\n'); err != nil || line != "ready\n" {
		vm.stop()
		return nil, fmt.Errorf("the raw guest said %q: %w", line, err)
	}
	return vm, nil
}

// startGuest releases a guest that QEMU holds at its first instruction; one that runs does not mind.
func startGuest(control *os.File) error {
	_, err := control.WriteString(`{"execute":"qmp_capabilities"}` + "\n" + `{"execute":"cont"}` + "\n")
	return err
}

func rawInitrd(ctx context.Context, dir string) (*os.File, error) {
	bin := filepath.Join(dir, "rawguest")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./tests/bench/rawguest")
	cmd.Dir = harness.Root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build rawguest: %w: %s", err, out)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	if err := guest.WriteCPIO(&buf, []guest.Entry{
		{Path: "dev", Mode: 0o040755},
		{Path: "init", Mode: 0o100755, Data: data},
		{Path: "sys", Mode: 0o040755},
	}); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "raw.cpio")
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		return nil, err
	}
	return os.Open(path)
}

func (v *rawVM) out() (float64, error) {
	start := time.Now()
	if _, err := fmt.Fprintf(v.conn, "out %d\n", streamSize); err != nil {
		return 0, err
	}
	if _, err := io.CopyN(io.Discard, v.r, streamSize); err != nil {
		return 0, err
	}
	return streamSize / float64(1<<20) / time.Since(start).Seconds(), nil
}

func (v *rawVM) in() (float64, error) {
	start := time.Now()
	if _, err := fmt.Fprintf(v.conn, "in %d\n", streamSize); err != nil {
		return 0, err
	}
	if _, err := io.CopyN(v.conn, zeros{}, streamSize); err != nil {
		return 0, err
	}
	line, err := v.r.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "done" {
		return 0, fmt.Errorf("the raw guest said %q: %w", line, err)
	}
	return streamSize / float64(1<<20) / time.Since(start).Seconds(), nil
}

func (v *rawVM) stop() {
	_ = v.conn.Close()
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}
