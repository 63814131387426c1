// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/coco-shim/coco/hypervisor"
)

// fakeTPM serves virtual TPMs of a world.
type fakeTPM world

func (f *fakeTPM) Begin(_ context.Context, netns string, user uint32) (hypervisor.Process, error) {
	if netns == "" || user == 0 {
		return nil, errors.New("begun without a network namespace or a user")
	}
	return (*world)(f).fork()
}

func (f *fakeTPM) Serve(context.Context, hypervisor.Process) (*os.File, error) {
	if err := (*world)(f).op("serve a TPM"); err != nil {
		return nil, err
	}
	return os.Open(os.DevNull)
}

func TestAHostWithoutTPMsRefusesTheirPlatform(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.Config.Hypervisor.Platform, o.Config.Hypervisor.Firmware = "vtpm", w.file("OVMF.fd", 0o644)
	o.Config.VTPM.Program = w.file("swtpm", 0o755)
	o.Host.TPM = nil
	_, err := CreatePod(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "no server of virtual TPMs") {
		t.Errorf("CreatePod() = %v", err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
