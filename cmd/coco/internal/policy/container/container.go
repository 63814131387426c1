// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package container has the command that makes the policy of a container that is no pod's: one of ctr, nerdctl or
// Docker.
package container

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/policy/images"
	"github.com/coco-shim/coco/cmd/coco/internal/progress"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/engine"
)

// options are the flags.
type options struct {
	images images.Flags
	allow  images.Allow
	image  string
	base   string
	form   string
	digest string
	engine.Input
}

// Forms of the output.
const (
	formInitdata   = "initdata"
	formAnnotation = "annotation"
	formPolicy     = "policy"
)

var forms = []string{formInitdata, formAnnotation, formPolicy}

// Command returns the command.
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "container FILE",
		Short: "Make the policy of a container of ctr, nerdctl or Docker",
		Long: "Makes the policy of one container that is no pod's. FILE, or - for stdin, is what the engine tells of it:\n" +
			"what ctr container info ID prints, or nerdctl container inspect --mode=native ID. So nothing of a command\n" +
			"line is guessed; the policy allows what the runtime gets of such a container, and nothing else. For Docker it\n" +
			"is what ctr -n moby container info ID prints while the container runs; --image and --interface tell the\n" +
			"rest.\n\n" +
			"The result is initdata, for hypervisor.initdata of the configuration with which the container runs. The image\n" +
			"comes from --images, else from its registry. All capabilities are closed but those that --allow names: open\n" +
			"logs to see the container's output.",
		Example: "  ctr container create --runtime io.containerd.coco.v2 --runtime-config-path /etc/coco/pinned.toml \\\n" +
			"    docker.io/library/app:1 app1 /app --serve\n" +
			"  ctr container info app1 | coco policy gen container --allow logs - > /etc/coco/initdata.toml\n" +
			"  ctr task start --detach app1",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.run(cmd, args[0]); err != nil {
				return fmt.Errorf("policy gen container: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	o.images.Add(f)
	o.allow.Add(f)
	f.StringVar(&o.image, "image", "", "reference of the image, where FILE has none or another one")
	f.StringSliceVar(&o.Interfaces, "interface", nil,
		"network interface that the container gets, where FILE does not tell it (ctr run --cni: eth0); may be repeated")
	f.BoolVar(&o.Unpinned, "allow-unpinned", false, "admit any content of files of the host that the container mounts")
	f.StringVarP(&o.form, "output", "o", formInitdata, "what is written: "+strings.Join(forms, ", "))
	f.StringVar(&o.digest, "algorithm", "sha256", "digest of the initdata: sha256 for SNP, sha384 for TDX")
	f.StringVar(&o.base, "initdata", "", "initdata document whose other files are kept")
	return cmd
}

func (o *options) run(cmd *cobra.Command, path string) error {
	if !slices.Contains(forms, o.form) {
		return fmt.Errorf("--output %q: known are %s", o.form, strings.Join(forms, ", "))
	}
	if err := o.allow.Open(&o.Allow); err != nil {
		return err
	}
	if o.Allow.PortForward {
		return errors.New("--allow port-forward: only Kubernetes forwards ports so")
	}
	text, err := cli.Input(cmd, path, engine.MaxText)
	if err == nil {
		o.Container, err = engine.Parse(text)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if o.image == "" {
		o.image = o.Container.Image
	}
	if o.image == "" {
		return fmt.Errorf("%s does not name the image: give its reference with --image", path)
	}
	steps := progress.New(cmd.ErrOrStderr())
	finder, err := o.images.Finder(steps)
	if err != nil {
		return err
	}
	if o.Image, _, err = finder.Image(cmd.Context(), o.image); err != nil {
		return err
	}
	steps.Wait()
	p, notes, err := engine.Policy(o.Input)
	if err != nil {
		return err
	}
	for _, n := range notes {
		cmd.PrintErrf("note: %s\n", n)
	}
	return o.print(cmd, p)
}

// print writes the policy in the form that was asked for, and the digest of its initdata to stderr.
func (o *options) print(cmd *cobra.Command, p *policy.Policy) error {
	text, err := policy.Encode(p)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if o.form == formPolicy {
		_, err := fmt.Fprintf(out, "%s\n", text)
		return err
	}
	files, err := images.InitdataFiles(o.base)
	if err != nil {
		return err
	}
	files[policy.FileName] = string(text)
	doc, err := initdata.New(o.digest, files)
	if err != nil {
		return err
	}
	cmd.PrintErrf("initdata digest: %s:%s\n", doc.Algorithm, hex.EncodeToString(doc.Digest()))
	if o.form == formInitdata {
		_, err := out.Write(doc.Text)
		return err
	}
	value, err := doc.Annotation()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, value)
	return err
}
