// This file answers: does everything the Workload API hands out verify?
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sort"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// fetched is the report of the fetch subcommand; the Python and Rust peers
// print the same keys. Serial numbers are lower-case hexadecimal without
// leading zeros, instants are RFC 3339 in UTC.
type fetched struct {
	SpiffeID          string     `json:"spiffe_id"`
	Serial            string     `json:"serial"`
	NotBefore         string     `json:"not_before"`
	NotAfter          string     `json:"not_after"`
	SVIDs             int        `json:"svids"`
	Chain             int        `json:"chain"`
	BundleAuthorities int        `json:"bundle_authorities"`
	X509TrustDomains  []string   `json:"x509_trust_domains"`
	JWTTrustDomains   []string   `json:"jwt_trust_domains"`
	JWTAuthorities    int        `json:"jwt_authorities"`
	JWT               fetchedJWT `json:"jwt"`
	// Verified names the judgements that were passed, in order.
	Verified []string `json:"verified"`
}

type fetchedJWT struct {
	SpiffeID  string   `json:"spiffe_id"`
	Audience  []string `json:"audience"`
	KeyID     string   `json:"key_id"`
	IssuedAt  string   `json:"issued_at"`
	ExpiresAt string   `json:"expires_at"`
}

func runFetch(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("fetch", flag.ContinueOnError)
	audience := flags.String("audience", "", "audience of the JWT-SVID")
	timeout := flags.Duration("timeout", 30*time.Second, "bound of all calls together")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := required(flags, "audience"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()

	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	report := fetched{Verified: []string{}}
	if err := fetchX509(ctx, client, &report); err != nil {
		return err
	}
	if err := fetchJWT(ctx, client, *audience, &report); err != nil {
		return err
	}
	return emit(report)
}

func fetchX509(ctx context.Context, client *workloadapi.Client, report *fetched) error {
	x509Context, err := client.FetchX509Context(ctx)
	if err != nil {
		return fmt.Errorf("fetch X.509 context: %w", err)
	}
	svid := x509Context.DefaultSVID()
	for _, one := range x509Context.SVIDs {
		id, _, err := x509svid.Verify(one.Certificates, x509Context.Bundles)
		if err != nil {
			return fmt.Errorf("verify X509-SVID of %s against its own bundle: %w", one.ID, err)
		}
		if id != one.ID {
			return fmt.Errorf("X509-SVID is announced as %s but says %s", one.ID, id)
		}
	}
	report.Verified = append(report.Verified, "x509_svid")

	bundles, err := client.FetchX509Bundles(ctx)
	if err != nil {
		return fmt.Errorf("fetch X.509 bundles: %w", err)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, bundles); err != nil {
		return fmt.Errorf("verify X509-SVID against the fetched bundles: %w", err)
	}
	report.Verified = append(report.Verified, "x509_bundles")

	own, err := x509Context.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return err
	}
	leaf := svid.Certificates[0]
	report.SpiffeID = svid.ID.String()
	report.Serial = leaf.SerialNumber.Text(16)
	report.NotBefore = instant(leaf.NotBefore)
	report.NotAfter = instant(leaf.NotAfter)
	report.SVIDs = len(x509Context.SVIDs)
	report.Chain = len(svid.Certificates)
	report.BundleAuthorities = len(own.X509Authorities())
	for _, bundle := range bundles.Bundles() {
		report.X509TrustDomains = append(report.X509TrustDomains, bundle.TrustDomain().Name())
	}
	sort.Strings(report.X509TrustDomains)
	return nil
}

func fetchJWT(ctx context.Context, client *workloadapi.Client, audience string, report *fetched) error {
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return fmt.Errorf("fetch JWT-SVID: %w", err)
	}
	token := svid.Marshal()

	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return fmt.Errorf("fetch JWT bundles: %w", err)
	}
	report.Verified = append(report.Verified, "jwt_bundles")

	validated, err := client.ValidateJWTSVID(ctx, token, audience)
	if err != nil {
		return fmt.Errorf("validate JWT-SVID through the Workload API: %w", err)
	}
	if validated.ID != svid.ID {
		return fmt.Errorf("validation says %s, the JWT-SVID is of %s", validated.ID, svid.ID)
	}
	if _, err := client.ValidateJWTSVID(ctx, token, audience+"-other"); err == nil {
		return errors.New("the Workload API validated a JWT-SVID for an audience it was not issued for")
	}
	report.Verified = append(report.Verified, "jwt_workload_api")

	if _, err := jwtsvid.ParseAndValidate(token, bundles, []string{audience}); err != nil {
		return fmt.Errorf("validate JWT-SVID offline: %w", err)
	}
	if _, err := jwtsvid.ParseAndValidate(token, bundles, []string{audience + "-other"}); err == nil {
		return errors.New("a JWT-SVID validated for an audience it was not issued for")
	}
	report.Verified = append(report.Verified, "jwt_offline")

	report.JWTTrustDomains, report.JWTAuthorities, err = countJWT(bundles, svid)
	if err != nil {
		return err
	}
	report.JWT, err = describeJWT(svid)
	return err
}

func countJWT(bundles *jwtbundle.Set, svid *jwtsvid.SVID) (names []string, authorities int, err error) {
	own, err := bundles.GetJWTBundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return nil, 0, err
	}
	for _, bundle := range bundles.Bundles() {
		names = append(names, bundle.TrustDomain().Name())
	}
	sort.Strings(names)
	return names, len(own.JWTAuthorities()), nil
}

// signatureAlgorithms are those that the JWT-SVID specification allows.
var signatureAlgorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512,
}

// describeJWT reads the header and the issue time, which go-spiffe does not
// keep, out of a token that was validated before.
func describeJWT(svid *jwtsvid.SVID) (fetchedJWT, error) {
	token, err := jwt.ParseSigned(svid.Marshal(), signatureAlgorithms)
	if err != nil {
		return fetchedJWT{}, err
	}
	var claims jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return fetchedJWT{}, err
	}
	described := fetchedJWT{
		SpiffeID:  svid.ID.String(),
		Audience:  svid.Audience,
		KeyID:     token.Headers[0].KeyID,
		ExpiresAt: instant(svid.Expiry),
	}
	if claims.IssuedAt != nil {
		described.IssuedAt = instant(claims.IssuedAt.Time())
	}
	return described, nil
}

func instant(at time.Time) string {
	return at.UTC().Format(time.RFC3339)
}
