// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package check has the command that reports what this host can run and what is missing.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/guest"
	"github.com/coco-shim/coco/hypervisor/clh"
	"github.com/coco-shim/coco/hypervisor/probe"
	"github.com/coco-shim/coco/hypervisor/qemu"
	"github.com/coco-shim/coco/hypervisor/virtiofsd"
	"github.com/coco-shim/coco/internal/cpuid"
)

// Command returns the command.
func Command() *cobra.Command {
	var config string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell what this host can run and what is missing",
		Long: "Looks at the processor, KVM, QEMU, containerd, the configuration and the guest image, and says\n" +
			"for each platform whether its pods can run here, and for each \"no\" what to do. It changes nothing.\n" +
			"The exit status is 0 when the configured platform can run.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, cfgErr := configs.Load(config)
			if cfgErr != nil {
				cfg = configs.Default()
			}
			host := probe.Host{
				Root: "/", CPUID: cpuid.Query, QEMU: askQEMU, CLH: askCLH, Version: askVersion, SEVStatus: probe.SEVStatus,
			}
			checks := []probe.Check{
				{Name: "config", Required: true, Run: func() (string, error) { return describeConfig(cfg), cfgErr }},
				{Name: "guest-image", Required: true, Run: func() (string, error) { return checkGuest(cfg) }},
			}
			if hostPath := cfg.Runtime.HostPath == configs.HostPathLive; hostPath || cfg.LiveBinds() {
				live := func() (string, error) { return checkLive(cmd.Context(), cfg) }
				required := hostPath || cfg.Runtime.Binds == configs.BindsLive
				checks = append(checks, probe.Check{Name: "virtiofsd", Required: required, Run: live})
			}
			checks = append(checks, checkConfinement(cmd.Context(), cfg)...)
			report := probe.Run(cmd.Context(), host, probe.Options{
				QEMUPath: qemuPath(cfg), CLHPath: clhPath(cfg), Driver: cfg.Hypervisor.Type,
				Checks: checks,
			})
			var err error
			if asJSON {
				err = show.JSON(cmd.OutOrStdout(), report)
			} else {
				err = printReport(cmd.OutOrStdout(), report)
			}
			if err != nil {
				return err
			}
			return verdict(report, cfg.Hypervisor.Platform)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file (default: the one that the shim finds)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// verdict is the error of a host on which the configured platform cannot run.
func verdict(r probe.Report, platform string) error {
	if platform == configs.PlatformVTPM { // beyond that it needs files, which were looked for with the guest image
		platform = "none"
	}
	for _, p := range r.Platforms {
		if p.Name == platform && !p.Usable {
			return fmt.Errorf("pods of platform %q cannot run here: %s", platform, strings.Join(p.Missing, ", "))
		}
	}
	return nil
}

func describeConfig(cfg configs.Config) string {
	if len(cfg.Files) == 0 {
		return "built-in defaults, platform " + cfg.Hypervisor.Platform
	}
	return strings.Join(cfg.Files, ", ") + ", platform " + cfg.Hypervisor.Platform
}

// checkGuest holds the guest image against its manifest; one that was put together by hand has none.
func checkGuest(cfg configs.Config) (string, error) {
	boot, err := cfg.Hypervisor.Boot()
	if err != nil {
		return "not found", err
	}
	dir := filepath.Dir(boot.Kernel)
	if err := cfg.CheckFiles(); err != nil {
		return dir, errors.New(strings.TrimPrefix(err.Error(), errdefs.ErrFailedPrecondition.Error()+": "))
	}
	if filepath.Dir(boot.Initrd) != dir {
		return boot.Kernel + " and " + boot.Initrd + ", without a manifest", nil
	}
	report, err := guest.Inspect(dir)
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		return dir, fmt.Errorf("%w; build and install it again (make image install)", err)
	}
	return fmt.Sprintf("%s, kernel %s, as its manifest says", dir, report.Manifest.Kernel.Release), nil
}

// checkLive looks for what serves live files of the host.
func checkLive(ctx context.Context, cfg configs.Config) (string, error) {
	d, err := virtiofsd.Find(ctx, cfg.Runtime.Virtiofsd)
	if err != nil {
		return "not usable", errors.New(strings.TrimSuffix(err.Error(), ": "+errdefs.ErrFailedPrecondition.Error()))
	}
	whose := "that somebody mounts with Docker, nerdctl or ctr"
	if cfg.Runtime.HostPath == configs.HostPathLive {
		whose = "of the host (runtime.host_path is live)"
	}
	return d.Path + ", " + d.Version + "; VMs read and write files " + whose, nil
}

func askQEMU(ctx context.Context, path string) (probe.QEMU, error) {
	info, err := qemu.Inspect(ctx, path)
	if err != nil {
		return probe.QEMU{}, err
	}
	v := info.Version
	return probe.QEMU{Major: v.Major, Minor: v.Minor, Micro: v.Micro, Objects: info.Objects}, nil
}

// qemuPath and clhPath are the configured VMM, or where the other one would be.
func qemuPath(cfg configs.Config) string {
	if cfg.Hypervisor.Type == configs.TypeQEMU {
		return cfg.Hypervisor.Path
	}
	return configs.Default().Hypervisor.Path
}

func clhPath(cfg configs.Config) string {
	if cfg.Hypervisor.Type == configs.TypeCLH {
		return cfg.Hypervisor.Path
	}
	path, err := exec.LookPath("cloud-hypervisor")
	if err != nil {
		return ""
	}
	return path
}

func askCLH(ctx context.Context, path string) (probe.CLH, error) {
	info, err := clh.Inspect(ctx, path)
	if err != nil {
		return probe.CLH{}, err
	}
	return probe.CLH{
		Version: info.Version, Major: info.Major, Min: clh.MinVersion, MinSNP: clh.MinVersionSNP, Features: info.Features,
	}, nil
}

// askVersion returns the first line that a program prints for --version or, as shims have it, -v.
func askVersion(ctx context.Context, program string) (string, error) {
	path, err := exec.LookPath(program)
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("no %s in PATH: %w", program, exec.ErrNotFound)
	}
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	flag := "--version"
	if strings.HasPrefix(program, "containerd-shim-") {
		flag = "-v"
	}
	out, err := exec.CommandContext(ctx, path, flag).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", path, flag, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if line == "" {
		line = path
	}
	return line, nil
}

func printReport(w io.Writer, r probe.Report) error {
	var b strings.Builder
	for _, p := range r.Platforms {
		switch {
		case p.Usable:
			fmt.Fprintf(&b, "platform %-5s can run, under %s\n", p.Name, p.How)
		default:
			fmt.Fprintf(&b, "platform %-5s cannot run: %s\n", p.Name, strings.Join(p.Missing, ", "))
		}
	}
	b.WriteString("\n")
	for _, f := range r.Findings {
		mark := map[probe.Status]string{probe.Yes: "yes", probe.No: "NO", probe.Note: ""}[f.Status]
		fmt.Fprintf(&b, "%-4s %-13s %s\n", mark, f.Name, f.Detail)
		for line := range strings.Lines(f.Fix) {
			fmt.Fprintf(&b, "%19s%s\n", "-> ", strings.TrimRight(line, "\n"))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
