// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/image/sign"
	"github.com/coco-shim/coco/image/sign/trustpolicy"
)

// verifyOptions are the flags of coco image verify.
type verifyOptions struct {
	registry
	key, policy, identity, platform string
	layers, asJSON                  bool
}

func verifyCommand() *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Verify that an image is signed by a key, or as a policy.json asks",
		Long: "Looks for signatures in the image's repository, as bundles and as payloads, and verifies that one is by\n" +
			"the key and names this repository and this digest. --layers asks for a layer statement in addition, and\n" +
			"prints the layers that it vouches for. Certificates and transparency logs are not looked at.\n\n" +
			"Exit status: 0 verified, 1 usage, files or no answer of the registry, 3 not verified.",
		Example: "  coco image verify --key release.pub registry.example/team/app:1.4\n" +
			"  coco image verify --policy policy.json registry.example/team/app:1.4",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := o.run(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("verify %s: %w", args[0], err)
			}
			if o.asJSON {
				return show.JSON(cmd.OutOrStdout(), out)
			}
			return out.print(cmd.OutOrStdout())
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "", "file with the public key (PEM)")
	f.StringVar(&o.policy, "policy", "", "policy of containers/image (policy.json)")
	f.StringVar(&o.identity, "identity", "", "repository that statements name, for a mirror (default: the image's)")
	f.BoolVar(&o.layers, "layers", false, "want a layer statement too")
	f.StringVar(&o.platform, "platform", defaultPlatform, "platform of the layers")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	cmd.MarkFlagsOneRequired("key", "policy")
	cmd.MarkFlagsMutuallyExclusive("key", "policy")
	cmd.MarkFlagsMutuallyExclusive("layers", "policy")
	cmd.MarkFlagsMutuallyExclusive("identity", "policy")
	return cmd
}

// verified is the command's output.
type verified struct {
	Image  string       `json:"image"` // with its digest
	Signed bool         `json:"signed"`
	Layers *sign.Layers `json:"layers,omitempty"`
}

func (v verified) print(w io.Writer) error {
	text := "verified: " + v.Image + "\n"
	if !v.Signed {
		text = "accepted without a signature (insecureAcceptAnything): " + v.Image + "\n"
	}
	if v.Layers != nil {
		text += "manifest for " + v.Layers.Platform + ": " + v.Layers.Manifest + "\n"
		for _, root := range v.Layers.Roots {
			text += "layer: " + root + "\n"
		}
	}
	_, err := io.WriteString(w, text)
	return err
}

func (o *verifyOptions) run(ctx context.Context, ref string) (verified, error) {
	want := []trustpolicy.Requirement{{Kind: trustpolicy.Signed, KeyPath: o.key, Repository: o.identity}}
	var p *trustpolicy.Policy
	if o.policy != "" {
		text, err := cli.ReadFile(o.policy, trustpolicy.MaxSize)
		if err == nil {
			p, err = trustpolicy.Parse(text)
		}
		if err != nil {
			return verified{}, fmt.Errorf("--policy %s: %w", o.policy, err)
		}
	}
	image, err := o.find(ctx, ref)
	if err != nil {
		return verified{}, err
	}
	if p != nil {
		want = p.For(repositoryOf(image), image.suffix)
	}
	out := verified{Image: image.name.String()}
	for _, r := range want {
		if err := o.fulfil(ctx, image, r, &out); err != nil {
			return verified{}, err
		}
	}
	return out, nil
}

// repositoryOf is the name by which policies know the image's repository.
func repositoryOf(image subject) string {
	return strings.Replace(image.Repository, "index.docker.io/", "docker.io/", 1)
}

// fulfil checks one requirement.
func (o *verifyOptions) fulfil(ctx context.Context, image subject, r trustpolicy.Requirement, out *verified) error {
	switch r.Kind {
	case trustpolicy.AcceptAnything:
		return nil
	case trustpolicy.Signed:
	default:
		return cli.Failure{Err: errors.New("the policy rejects this image"), Code: notVerified}
	}
	key, err := keyOf(r)
	if err != nil {
		return err
	}
	about := image.Image
	if r.Repository != "" {
		about.Repository = r.Repository
	}
	bundles, err := image.bundles(ctx)
	if err != nil {
		return err
	}
	payloads, err := image.payloads(ctx)
	if err != nil {
		return err
	}
	if err := signed(key, about, bundles, payloads); err != nil {
		return cli.Failure{Err: err, Code: notVerified}
	}
	out.Signed = true
	if !o.layers {
		return nil
	}
	l, err := layers(key, about, bundles, o.platform)
	if err != nil {
		return cli.Failure{Err: err, Code: notVerified}
	}
	out.Layers = &l
	return nil
}

// keyOf reads the key of a requirement.
func keyOf(r trustpolicy.Requirement) (sign.Key, error) {
	text := r.KeyData
	if r.KeyPath != "" {
		path := strings.TrimPrefix(r.KeyPath, "file://")
		if strings.Contains(path, "://") {
			return sign.Key{}, fmt.Errorf("the key %s is no file: this command asks no key broker", r.KeyPath)
		}
		var err error
		if text, err = cli.ReadFile(path, maxKey); err != nil {
			return sign.Key{}, fmt.Errorf("the public key: %w", err)
		}
	}
	k, err := sign.ParseKey(text)
	if err != nil {
		return sign.Key{}, fmt.Errorf("the public key %s: %w", r.KeyPath, err)
	}
	return k, nil
}

// signed returns nil if one of the signatures holds, else why none does.
func signed(key sign.Key, image sign.Image, bundles [][]byte, payloads []payload) error {
	var all []error
	for _, b := range bundles {
		err := sign.CheckBundle(key, b, image)
		if err == nil {
			return nil
		}
		all = append(all, fmt.Errorf("bundle: %w", err))
	}
	for _, p := range payloads {
		err := sign.CheckPayload(key, p.text, p.signature, image)
		if err == nil {
			return nil
		}
		all = append(all, fmt.Errorf("payload: %w", err))
	}
	return because("no signature holds for the image", all)
}

// layers returns the layers of the first statement that holds.
func layers(key sign.Key, image sign.Image, bundles [][]byte, platform string) (sign.Layers, error) {
	var all []error
	for _, b := range bundles {
		l, err := sign.CheckLayers(key, b, image, platform)
		if err == nil {
			return l, nil
		}
		all = append(all, err)
	}
	return sign.Layers{}, because("no layer statement holds for the image", all)
}

// because joins the reasons, at most five.
func because(what string, all []error) error {
	if len(all) == 0 {
		return errors.New(what + ": there is none")
	}
	if more := len(all) - 5; more > 0 {
		all = append(all[:5], fmt.Errorf("and %d more", more))
	}
	return fmt.Errorf("%s: %w", what, errors.Join(all...))
}
