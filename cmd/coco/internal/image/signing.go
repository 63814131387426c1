// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/progress"
	"github.com/coco-shim/coco/image/resolve"
	"github.com/coco-shim/coco/image/sign"
)

// Forms of signatures.
const (
	formBundle  = "bundle"
	formPayload = "payload"
)

var formNames = []string{formBundle, formPayload}

func signCommand() *cobra.Command {
	var r registry
	var key string
	var forms []string
	cmd := &cobra.Command{
		Use:   "sign IMAGE...",
		Short: "Sign images with a key, as cosign does",
		Long: "Signs what a tag or digest names now, an index as a whole, and stores the signatures in its repository: as\n" +
			"a sigstore bundle that refers to the image, which cosign 3 reads, and as a payload under the tag\n" +
			"sha256-HEX.sig, which older cosign, Podman and CoCo read. The signature names the repository; a copy in\n" +
			"another one is not signed.",
		Example: "  coco image sign --key release.key registry.example/team/app:1.4",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, f := range forms {
				if !slices.Contains(formNames, f) {
					return fmt.Errorf("--form %q: known are %s", f, strings.Join(formNames, ", "))
				}
			}
			s, err := signer(key)
			if err != nil {
				return err
			}
			for _, ref := range args {
				image, err := r.find(cmd.Context(), ref)
				if err == nil {
					err = store(cmd.Context(), s, image, forms)
				}
				if err != nil {
					return fmt.Errorf("sign %s: %w", ref, err)
				}
				fmt.Fprintln(cmd.OutOrStdout(), image.name)
			}
			return nil
		},
	}
	r.flags(cmd)
	cmd.Flags().StringVar(&key, "key", "", "file with the private key (PEM, PKCS #8)")
	cmd.Flags().StringSliceVar(&forms, "form", formNames, "forms of the signature: "+strings.Join(formNames, ", "))
	cli.Require(cmd, "key")
	return cmd
}

// store signs an image in each of the forms.
func store(ctx context.Context, s sign.Signer, image subject, forms []string) error {
	if slices.Contains(forms, formBundle) {
		b, err := sign.SignatureBundle(s, image.Image)
		if err == nil {
			err = image.addBundle(ctx, b, sign.SignaturePredicate)
		}
		if err != nil {
			return err
		}
	}
	if !slices.Contains(forms, formPayload) {
		return nil
	}
	text, err := sign.Payload(image.Image)
	if err != nil {
		return err
	}
	sig, err := s.Sign(text)
	if err != nil {
		return err
	}
	return image.addPayload(ctx, payload{text, sig})
}

func attestCommand() *cobra.Command {
	var r registry
	var key string
	var platforms []string
	cmd := &cobra.Command{
		Use:   "attest IMAGE",
		Short: "Sign a statement of the layers that nodes make of an image",
		Long: "Reads the image's layers, computes the dm-verity root hash that a node computes of each, and stores a\n" +
			"signed statement of them as a sigstore bundle that refers to the image. coco image verify --layers checks it.",
		Example: "  coco image attest --key release.key --platform linux/amd64 registry.example/team/app:1.4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := signer(key)
			if err != nil {
				return err
			}
			image, err := r.find(cmd.Context(), args[0])
			if err == nil {
				err = attest(cmd, r, s, image, platforms)
			}
			if err != nil {
				return fmt.Errorf("attest %s: %w", args[0], err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), image.name)
			return err
		},
	}
	r.flags(cmd)
	cmd.Flags().StringVar(&key, "key", "", "file with the private key (PEM, PKCS #8)")
	cmd.Flags().StringSliceVar(&platforms, "platform", []string{defaultPlatform}, "platforms whose layers are read")
	cli.Require(cmd, "key")
	return cmd
}

const defaultPlatform = "linux/amd64"

func attest(cmd *cobra.Command, r registry, s sign.Signer, image subject, platforms []string) error {
	steps := progress.New(cmd.ErrOrStderr())
	defer steps.Wait()
	var images []sign.Layers
	for _, text := range platforms {
		p, err := v1.ParsePlatform(text)
		if err != nil {
			return fmt.Errorf("--platform: %w", err)
		}
		f := resolve.Finder{Insecure: r.insecure, Platform: p, Progress: shown{steps}}
		got, err := f.Resolve(cmd.Context(), image.name.String())
		if err != nil {
			return err
		}
		images = append(images, sign.Layers{Platform: text, Manifest: got.Digest, Roots: got.Layers})
	}
	b, err := sign.LayerBundle(s, image.Image, images)
	if err != nil {
		return err
	}
	return image.addBundle(cmd.Context(), b, sign.LayersPredicate)
}

// shown shows the resolver's steps.
type shown struct{ progress.Shown }

// Step begins a step.
func (s shown) Step(title string, total int64) resolve.Task { return s.Shown.Step(title, total) }
