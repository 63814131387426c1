// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/foresee"
)

// foreseeTime bounds an answer, which takes some 30 ms on an idle machine.
const foreseeTime = 10 * time.Second

// denial is the text of a denial, as the guest would give it.
type denial string

func (d denial) Error() string { return string(d) }

func (d denial) Unwrap() error { return errdefs.ErrPermissionDenied }

// judge asks the program coco beside a program about requests that no guest has got yet.
type judge struct{ exe string }

// Foresee returns the policy's denial, of class permission denied. Other errors say that there is no answer.
func (j judge) Foresee(ctx context.Context, policy string, box *agent.CreateSandboxRequest,
	c *agent.CreateContainerRequest,
) error {
	q := foresee.Question{Policy: policy}
	var err error
	if q.Sandbox, err = proto.Marshal(box); err != nil {
		return err
	}
	if c != nil {
		if q.Container, err = proto.Marshal(c); err != nil {
			return err
		}
	}
	text, err := json.Marshal(q)
	if err != nil {
		return err
	}
	self := j.exe
	if self == "" {
		if self, err = os.Executable(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, foreseeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "coco"), foresee.Args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C", "GOMAXPROCS=1"}
	cmd.Stdin = bytes.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s %s: %w", cmd.Path, strings.Join(foresee.Args, " "), err)
	}
	if len(out) > 0 {
		return denial(strings.ToValidUTF8(string(out[:min(len(out), foresee.MaxAnswer)]), "?"))
	}
	return nil
}
