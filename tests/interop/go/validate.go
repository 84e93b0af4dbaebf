// This file answers: is a JWT-SVID that somebody shows us valid?
package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// runValidate validates a token offline, against the bundles of the Workload
// API, for every audience that it names itself.
func runValidate(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("validate", flag.ContinueOnError)
	token := flags.String("token", "", "the JWT-SVID")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := required(flags, "token"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return fmt.Errorf("fetch JWT bundles: %w", err)
	}
	claimed, err := parseToken(*token)
	if err != nil {
		return err
	}
	if len(claimed.Audience) == 0 {
		return fmt.Errorf("the token names no audience")
	}
	for _, audience := range claimed.Audience {
		if _, err := jwtsvid.ParseAndValidate(*token, bundles, []string{audience}); err != nil {
			return fmt.Errorf("validate for %q: %w", audience, err)
		}
	}
	described, err := describeJWT(claimed)
	if err != nil {
		return err
	}
	return emit(described)
}

// parseToken reads a token without judging who signed it.
func parseToken(token string) (*jwtsvid.SVID, error) {
	parsed, err := jwt.ParseSigned(token, signatureAlgorithms)
	if err != nil {
		return nil, err
	}
	var claims jwt.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return nil, err
	}
	return jwtsvid.ParseInsecure(token, claims.Audience)
}
