// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor/qemu/qmp"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/internal/fdpass"
)

// Info describes a QEMU binary by its own answers.
type Info struct {
	Version qmp.Version
	Objects []string // types that -object takes, sorted
}

// Inspect starts a QEMU binary without a machine and asks it.
func Inspect(ctx context.Context, path string) (info Info, err error) {
	err = ask(ctx, path, func(ctx context.Context, c *qmp.Client) error {
		info, err = interview(ctx, c)
		return err
	})
	return info, err
}

// ask starts a QEMU binary without a machine for some questions.
func ask(ctx context.Context, path string, questions func(context.Context, *qmp.Client) error) error {
	conn, peer, err := fdpass.Pair("control", unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer conn.Close() // the client does
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, path, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none",
		"-chardev", fmt.Sprintf("socket,id=control,fd=%d", firstFD), "-mon", "chardev=control,mode=control")
	cmd.ExtraFiles, cmd.Stderr, cmd.Env = []*os.File{peer}, &stderr, environment()
	err = cmd.Start()
	_ = peer.Close() // QEMU has its duplicate
	if err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	err = connected(ctx, conn, questions)
	_ = cmd.Process.Kill() // it holds nothing
	_ = cmd.Wait()         // killed
	if err != nil {
		if s := strings.TrimSpace(stderr.String()); s != "" {
			err = fmt.Errorf("%w; it says: %s", err, s)
		}
		return fmt.Errorf("ask %s: %w", path, err)
	}
	return nil
}

func connected(ctx context.Context, conn *net.UnixConn, questions func(context.Context, *qmp.Client) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, vmm.AnswerTimeout,
		errors.New("no answer within "+vmm.AnswerTimeout.Round(time.Second).String()))
	defer cancel()
	c, err := qmp.Connect(ctx, conn, func(qmp.Event) {})
	if err != nil {
		return err
	}
	defer c.Close()
	return questions(ctx, c)
}

func interview(ctx context.Context, c *qmp.Client) (Info, error) {
	var types []struct {
		Name string `json:"name"`
	}
	if err := c.Call(ctx, "qom-list-types", map[string]any{"implements": "user-creatable"}, &types); err != nil {
		return Info{}, err
	}
	info := Info{Version: c.Version()}
	for _, t := range types {
		info.Objects = append(info.Objects, t.Name)
	}
	sort.Strings(info.Objects)
	return info, nil
}
