// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package debug collects the facts from which a developer can judge a problem of a node, without secrets. Files of
// pods are not copied: each is decoded, and a new one is made of the fields that are listed here. Text of other
// programs loses texts that look like a secret.
package debug

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/cmd/coco/internal/pods"
	"github.com/coco-shim/coco/configs"
)

// Command returns the group.
func Command() *cobra.Command {
	cmd := &cobra.Command{Use: "debug", Short: "Collect what a report of a problem needs"}
	cmd.AddCommand(collectCommand())
	return cmd
}

func collectCommand() *cobra.Command {
	var config, output string
	cmd := &cobra.Command{
		Use:   "collect",
		Short: "Write an archive for a report of a problem, without secrets",
		Long: "Writes a tar.gz with the versions, the configuration, coco check, coco node status, the figures of all\n" +
			"pods, and of each pod its journal, the outline of its specification and the list of its files.\n" +
			"CONTENTS.txt in it lists every file. Values of environment variables, annotations and kernel parameters,\n" +
			"arguments of processes, tokens, keys and the output of containers are left out. Names of pods, mounts and\n" +
			"paths of the host are in it: look through it before you give it away.",
		Example: "  sudo coco debug collect\n  sudo coco debug collect -o /tmp/report.tar.gz",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now().UTC()
			if output == "" {
				output = "coco-debug-" + now.Format("20060102-150405") + ".tar.gz"
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			b := collect(cmd.Context(), config, self)
			if err := b.write(output, now); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\nwritten to %s; look through it before you give it away\n",
				b.contents(), output)
			return err
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file, as the shim finds it by default")
	cmd.Flags().StringVarP(&output, "output", "o", "", "archive to make (default: coco-debug-TIME.tar.gz here)")
	return cmd
}

// file is one of the archive.
type file struct {
	name, about string
	text        []byte
}

// bundle is the archive as it grows. A file that cannot be read becomes a line of problems; the collection goes on.
type bundle struct {
	files    []file
	problems []error
}

// maxFile bounds a file; the rest is cut off.
const maxFile = 4 << 20

func (b *bundle) add(name, about string, text []byte) {
	text = scrub(text)
	if len(text) > maxFile {
		text = append(text[:maxFile:maxFile], "\n[cut off]\n"...)
	}
	b.files = append(b.files, file{name, about, text})
}

func (b *bundle) addJSON(name, about string, v any) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		b.problems = append(b.problems, fmt.Errorf("%s: %w", name, err))
		return
	}
	b.add(name, about, append(text, '\n'))
}

// collect gathers all files. self is the program whose commands are asked too.
func collect(ctx context.Context, config, self string) *bundle {
	b := &bundle{}
	b.addJSON("host.json", "kernel, processors and memory of the host", aboutHost())
	for _, c := range []struct {
		name, about string
		args        []string
	}{
		{"version.json", "coco version --json", []string{"version", "--json"}},
		{"check.json", "coco check --json: what the host can run", []string{"check", "--json"}},
		{"node-status.json", "coco node status --json: engines and their handlers", []string{"node", "status", "--json"}},
	} {
		b.run(ctx, c.name, c.about, self, c.args)
	}
	cfg, err := configs.Load(config)
	if err != nil {
		b.problems = append(b.problems, err)
		cfg = configs.Default()
	} else {
		b.addJSON("config.json", "the configuration, without values of kernel parameters", outlineConfig(cfg))
	}
	s := pods.Take(ctx, cfg.Runtime.StateDir)
	b.addJSON("pods.json", "what coco inspect shows of each pod", s.Pods)
	b.add("metrics.prom", "the metrics of all pods", []byte(s.Metrics))
	if s.Silent != nil {
		b.problems = append(b.problems, s.Silent)
	}
	for _, p := range s.Places {
		b.addPod(p)
	}
	if err := errors.Join(b.problems...); err != nil {
		b.add("problems.txt", "what could not be read", []byte(err.Error()+"\n"))
	}
	return b
}

// commandTimeout bounds each command of ours that is asked.
const commandTimeout = time.Minute

// run adds the output of one of our commands. The command may fail: then its error is a part of the collection.
func (b *bundle) run(ctx context.Context, name, about, self string, args []string) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		b.problems = append(b.problems, fmt.Errorf("coco %v: %w: %s", args, err, errs.Bytes()))
	}
	b.add(name, about, out.Bytes())
}

func aboutHost() map[string]any {
	var u unix.Utsname
	var m unix.Sysinfo_t
	_, kvm := os.Stat("/dev/kvm")
	host := map[string]any{"cpus": runtime.NumCPU(), "kvm": kvm == nil}
	if unix.Uname(&u) == nil {
		host["kernel"], host["machine"] = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
	}
	if unix.Sysinfo(&m) == nil {
		host["memory_bytes"], host["free_bytes"] = m.Totalram*uint64(m.Unit), m.Freeram*uint64(m.Unit)
	}
	return host
}

// contents lists the files.
func (b *bundle) contents() string {
	var out bytes.Buffer
	for _, f := range b.files {
		fmt.Fprintf(&out, "%9d  %x  %s: %s\n", len(f.text), sha256.Sum256(f.text), f.name, f.about)
	}
	return out.String()
}

// write makes the archive, for its owner alone; a file that is there is not replaced.
func (b *bundle) write(output string, now time.Time) (err error) {
	f, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make the archive: %w; name another file with -o", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(output) // err matters
		}
	}()
	if err := b.archive(f, now); err != nil {
		return fmt.Errorf("write %s: %w", output, err)
	}
	return nil
}

func (b *bundle) archive(out io.Writer, now time.Time) error {
	z := gzip.NewWriter(out)
	t := tar.NewWriter(z)
	list := file{name: "CONTENTS.txt", text: []byte("bytes, SHA-256, file: content\n" + b.contents())}
	for _, f := range append([]file{list}, b.files...) {
		h := &tar.Header{Name: path.Join("coco-debug", f.name), Mode: 0o600, Size: int64(len(f.text)), ModTime: now}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(f.text); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}
