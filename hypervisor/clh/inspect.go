// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/coco-shim/coco/hypervisor/vmm"
)

// Info describes a Cloud Hypervisor binary by its own output.
type Info struct {
	Major    int
	Version  string   // as it prints it, for example "v53.0"
	Features []string // those of its features that show in its options
}

// MinVersion and MinVersionSNP are the least versions that the driver takes.
const (
	MinVersion    = minVersion
	MinVersionSNP = minVersionSNP
)

// optionOf tells a feature by the option that it brings.
var optionOf = []struct{ feature, option string }{
	{"fw_cfg", "--fw-cfg-config"}, {"igvm", "--igvm"}, {"sev_snp", "--host-data"},
}

// Inspect asks a binary for its version and options. It does not need KVM.
func Inspect(ctx context.Context, path string) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, vmm.AnswerTimeout)
	defer cancel()
	version, err := ask(ctx, path, "--version")
	if err != nil {
		return Info{}, err
	}
	help, err := ask(ctx, path, "--help")
	if err != nil {
		return Info{}, err
	}
	return describe(version, help)
}

func ask(ctx context.Context, path, option string) (string, error) {
	cmd := exec.CommandContext(ctx, path, option)
	cmd.Env, cmd.WaitDelay = environment(), time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", path, option, err)
	}
	return string(out), nil
}

// describe reads "cloud-hypervisor v53.0" and the list of options.
func describe(version, help string) (Info, error) {
	line, _, _ := strings.Cut(version, "\n")
	name, number, ok := strings.Cut(strings.TrimSpace(line), " ")
	major, err := majorOf(number)
	if !ok || name != "cloud-hypervisor" || err != nil {
		return Info{}, fmt.Errorf("it says %.40q, which is not Cloud Hypervisor", printable(line))
	}
	info := Info{Major: major, Version: printable(number)}
	words := map[string]bool{}
	for _, w := range strings.Fields(help) {
		words[strings.TrimRight(w, ",")] = true
	}
	for _, o := range optionOf {
		if words[o.option] {
			info.Features = append(info.Features, o.feature)
		}
	}
	return info, nil
}
